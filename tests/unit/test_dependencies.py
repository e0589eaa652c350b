"""What Weir brings with it: licences that a bank may use, and locks of hashes without an address."""

import re
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REQUIREMENTS = Path(__file__).parents[2] / "requirements"
LOCKS = sorted(REQUIREMENTS.glob("*.lock"))
RUNTIME_EXTRAS = ("services", "chat", "training", "federate", "stack")

# SPDX identifiers. Adding one is a decision: it says that a bank may run and pass on what bears it.
ALLOWED = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "MIT-0", "MPL-2.0",
    "MIT-CMU", "PSF-2.0", "Zlib", "LLVM-exception",
}  # fmt: skip
# What distributions without an SPDX expression write instead, in their License field or their classifiers.
SPELLINGS = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
}
# Read by a person: text in the License field that is no name of a licence.
READ = {"venusian": "BSD-3-Clause"}  # the Repoze licence: BSD with a clause on trademarks
# Weak copyleft of the LGPL's kind may be linked to at run time; each is named here.
LGPL = {"python-stdnum"}


def closure(root, extras):
    """The distributions that `root` wants with `extras` on this machine, and what those want."""
    found, waiting = set(), [(root, tuple(extras))]
    while waiting:
        name, chosen = waiting.pop()
        for line in distribution(name).requires or []:
            wanted = Requirement(line)
            marker = wanted.marker
            if marker is not None and not any(marker.evaluate({"extra": each}) for each in ("", *chosen)):
                continue
            key = canonicalize_name(wanted.name)
            if key not in found or wanted.extras:
                found.add(key)
                waiting.append((key, tuple(wanted.extras)))
    return found


def licences(name):
    """The SPDX identifiers under which a distribution stands; of "A OR B" those of both."""
    if name in READ:
        return {READ[name]}
    metadata = distribution(name).metadata
    expression = metadata.get("License-Expression")
    if expression:
        return set(re.split(r"\s+(?:AND|OR|WITH)\s+", expression.replace("(", "").replace(")", "")))
    classifiers = [
        line.rpartition("::")[2].strip()
        for line in metadata.get_all("Classifier") or []
        if line.startswith("License ::") and line.count("::") > 1
    ]
    said = classifiers or [metadata.get("License") or "none"]
    return {part for each in said for part in SPELLINGS.get(each.lower(), each).split(" AND ")}


RUNTIME = sorted(closure("weir", RUNTIME_EXTRAS))


def test_there_is_something_to_check():
    assert {"aiokafka", "faust-streaming", "numpy", "lightgbm", "tritonclient"} <= set(RUNTIME)


@pytest.mark.parametrize("name", RUNTIME)
def test_each_dependency_has_a_licence_that_is_allowed(name):
    found = licences(name)
    if name not in LGPL:
        assert found <= ALLOWED, f"{name} {distribution(name).version}: {', '.join(found - ALLOWED)}"


def test_no_dependency_stands_under_the_gpl():
    """Once more in words, over everything that the metadata says of the licence."""
    for name in RUNTIME:
        metadata = distribution(name).metadata
        said = [metadata.get("License-Expression") or "", (metadata.get("License") or "").splitlines()[:1]]
        said += [line for line in metadata.get_all("Classifier") or [] if line.startswith("License")]
        assert not re.search(r"\bA?GPL|General Public License", str(said)) or name in LGPL, name


def test_exceptions_are_not_kept_for_what_is_gone():
    assert set(READ) | LGPL <= set(RUNTIME)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_each_lock_pins_by_hash_and_names_no_address(lock):
    text = lock.read_text(encoding="utf-8")
    # Comments may say where to read on; what is installed comes from the index of the machine.
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert not [
        line for line in lines if "://" in line or line.lstrip().startswith(("-i ", "--index", "--find"))
    ]
    if lock.name.endswith("-jars.lock"):
        # One jar a line, its SHA-256 beside it.
        assert all(re.search(r"\b[0-9a-f]{64}\b", line) for line in lines)
        return
    entries = re.split(r"^(?=[A-Za-z0-9])", "\n".join(lines), flags=re.MULTILINE)
    for entry in filter(None, entries):
        assert re.match(r"[A-Za-z0-9._-]+(\[[^]]+\])?==\S+", entry), entry[:80]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry[:80]


def test_what_is_checked_is_what_the_lock_installs():
    """A package may stand in the lock more than once, for one Python and another."""
    text = (REQUIREMENTS / "dev.lock").read_text(encoding="utf-8")
    locked = {
        (canonicalize_name(name), version)
        for name, version in re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]+\])?==(\S+)", text, re.MULTILINE)
    }
    assert not {(name, distribution(name).version) for name in RUNTIME} - locked
