"""Stages of a model's versions: two people for every step, a log that shows who changed it, one champion."""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.risk.scoring import ServedModel
from services.training.__main__ import app
from services.training.errors import ModelBroken, TrainingError
from services.training.repository import ModelRepository
from services.training.stages import Signer, StageLog, add_person
from tests.support.stages import RIGHTS, SHIPPED, repository_of, signers, step
from weir.errors import ConfigError, IntegrityError, WeirError
from weir.inference.stages import LOG, PEOPLE, Act, Stage, StagesBroken, StepRefused


@pytest.fixture
def home(tmp_path) -> Path:
    """A repository with three versions."""
    return repository_of(tmp_path / "models", "1", "2", "3").root


@pytest.fixture
def log(home) -> StageLog:
    return StageLog(ModelRepository(home), "risk")


@pytest.fixture
def people(home, tmp_path) -> dict[str, Signer]:
    return signers(ModelRepository(home), tmp_path)


@pytest.fixture
def crowned(log, people) -> StageLog:
    """Version 1 was champion, 2 is, 3 is a candidate."""
    for version in "123":
        log.register(version, people["anna"])
    step(log, people, "1", Stage.CHAMPION)
    step(log, people, "2", Stage.CHAMPION)
    return log


@contextmanager
def freeze_after(text: str) -> Iterator[None]:
    """Steps are dated a second after that."""
    then = datetime.fromisoformat(text) + timedelta(seconds=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("services.training.stages.now", lambda: then)
        yield


def test_a_version_climbs_by_two_people_and_sends_the_champion_into_retirement(crowned, people):
    for stage in (Stage.SHADOW, Stage.CANARY, Stage.CHAMPION):
        step(crowned, people, "3", stage)
    assert crowned.read().stages == {"1": Stage.RETIRED, "2": Stage.RETIRED, "3": Stage.CHAMPION}


def test_who_proposed_cannot_approve(crowned, people):
    number = crowned.propose("3", Stage.CHAMPION, "mine", people["anna"])
    with pytest.raises(StepRefused, match="another person"):
        crowned.approve(number, people["anna"])
    assert crowned.read().stages["3"] is Stage.CANDIDATE
    assert number in crowned.read().open


def test_a_proposal_is_answered_once(crowned, people):
    number = crowned.propose("3", Stage.SHADOW, "try it", people["anna"])
    crowned.reject(number, "not yet", people["bo"])
    with pytest.raises(StepRefused, match="no open proposal"):
        crowned.approve(number, people["bo"])
    assert crowned.read().stages["3"] is Stage.CANDIDATE


@pytest.mark.parametrize(
    ("version", "to", "says"),
    [
        ("3", Stage.CANARY, "from there it can go to"),
        ("2", Stage.RETIRED, "put another version in its place"),
        ("9", Stage.SHADOW, "no version 9"),
    ],
)
def test_a_step_that_skips_a_rung_is_refused_and_leaves_the_log_as_it_was(crowned, people, version, to, says):
    before = crowned.path.read_bytes()
    with pytest.raises(WeirError, match=says):
        crowned.propose(version, to, "why not", people["anna"], 0.1 if to is Stage.CANARY else None)
    assert crowned.path.read_bytes() == before


def test_a_proposal_that_became_impossible_is_refused_when_it_is_approved(crowned, people):
    late = crowned.propose("3", Stage.SHADOW, "slowly", people["anna"])
    step(crowned, people, "3", Stage.CHAMPION)
    with pytest.raises(StepRefused, match="is champion"):
        crowned.approve(late, people["bo"])


def test_a_step_needs_a_reason_and_the_right_to_it(crowned, people):
    with pytest.raises(StepRefused, match="reason"):
        crowned.propose("3", Stage.SHADOW, "  ", people["anna"])
    with pytest.raises(StepRefused, match="may not propose"):
        crowned.propose("3", Stage.SHADOW, "me too", people["eve"])
    stranger = Signer.create("mallory", crowned.people.with_name("mallory.pem"), None)
    with pytest.raises(StepRefused, match=r"not in people\.toml"):
        crowned.propose("3", Stage.SHADOW, "let me", stranger)


def test_a_name_with_another_key_is_refused(crowned, people, tmp_path):
    false = Signer.create("bo", tmp_path / "false.pem", None)
    number = crowned.propose("3", Stage.SHADOW, "try it", people["anna"])
    with pytest.raises(StepRefused, match="not the one"):
        crowned.approve(number, false)


def test_who_has_left_signs_no_more_and_what_was_signed_before_still_holds(crowned, people):
    listed = crowned.people.read_text()
    later = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    crowned.people.write_text(listed.replace("[people.bo]", f"[people.bo]\nuntil = {later}"))
    step(crowned, people, "3", Stage.SHADOW)
    soon = (datetime.now(UTC) + timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    crowned.people.write_text(listed.replace("[people.bo]", f"[people.bo]\nuntil = {soon}"))
    number = crowned.propose("3", Stage.CANARY, "go on", people["anna"], 0.1)
    with pytest.raises(StepRefused, match="bo may not approve since"), freeze_after(soon):
        crowned.approve(number, people["bo"])
    assert crowned.read().stages["3"] is Stage.SHADOW


def test_a_step_from_before_the_last_one_is_refused(crowned, people):
    with pytest.raises(StepRefused, match="clock"), freeze_after("2026-01-01T00:00:00Z"):
        crowned.propose("3", Stage.SHADOW, "back-dated", people["anna"])


@pytest.mark.parametrize("until", ["2026-12-01", '"soon"', "2026-12-01T00:00:00"])
def test_an_end_without_a_zone_is_refused(crowned, people, until):
    listed = crowned.people.read_text()
    crowned.people.write_text(listed.replace("[people.bo]", f"[people.bo]\nuntil = {until}"))
    with pytest.raises(ConfigError, match="a time with its zone"):
        crowned.read()


def test_one_person_cannot_be_two(home, people):
    same = Signer("anna2", people["anna"]._key)
    add_person(home / PEOPLE, same, RIGHTS)
    with pytest.raises(ConfigError, match="cannot be two"):
        StageLog(ModelRepository(home), "risk").register("1", people["anna"])


def test_a_rollback_takes_two_people_and_forgets_what_came_after(crowned, people):
    step(crowned, people, "1", Stage.CHAMPION)
    state = crowned.read()
    assert (state.at(Stage.CHAMPION), state.stages["2"]) == ("1", Stage.RETIRED)
    assert state.champion_before() is None


def test_a_guard_puts_back_the_last_champion_alone_and_nothing_else(crowned, people):
    with pytest.raises(StepRefused, match="A guard may"):
        crowned.undo("3", Stage.CHAMPION, "I like it", people["guard"])
    with pytest.raises(StepRefused, match="may not undo"):
        crowned.undo("1", Stage.CHAMPION, "alone", people["anna"])
    crowned.undo("1", Stage.CHAMPION, "the alarm rate tripled", people["guard"])
    assert crowned.read().at(Stage.CHAMPION) == "1"
    with pytest.raises(StepRefused, match="A guard may"):
        crowned.undo("2", Stage.CHAMPION, "and forward again", people["guard"])


def test_a_guard_takes_a_canary_back_to_shadow(crowned, people):
    step(crowned, people, "3", Stage.SHADOW)
    step(crowned, people, "3", Stage.CANARY)
    crowned.undo("3", Stage.SHADOW, "it declines too many", people["guard"])
    assert crowned.read().stages["3"] is Stage.SHADOW


def test_a_canarys_share_is_what_two_people_signed_and_may_grow(crowned, people):
    step(crowned, people, "3", Stage.SHADOW)
    with pytest.raises(StepRefused, match="say --share"):
        crowned.propose("3", Stage.CANARY, "go on", people["anna"])
    for share in (0.01, 0.25):
        step(crowned, people, "3", Stage.CANARY, share)
        state = crowned.read()
        assert (state.at(Stage.CANARY), state.shares["3"]) == ("3", share)
    assert state.at(Stage.SHADOW) is None


@pytest.mark.parametrize("share", [0.0, -0.1, 0.51, float("nan"), float("inf")])
def test_a_share_that_is_no_canarys_is_refused(crowned, people, share):
    step(crowned, people, "3", Stage.SHADOW)
    with pytest.raises(StepRefused, match="share lies above 0"):
        crowned.propose("3", Stage.CANARY, "go on", people["anna"], share)


def test_no_other_step_has_a_share(crowned, people):
    with pytest.raises(StepRefused, match="for a canary alone"):
        crowned.propose("3", Stage.SHADOW, "go on", people["anna"], 0.1)


def test_a_canary_of_an_earlier_releases_log_has_no_share_and_decides_nothing(crowned, people):
    step(crowned, people, "3", Stage.SHADOW)
    # As `propose` wrote it before a step named a share.
    number = crowned._step(people["anna"], Act.PROPOSE, version="3", to="canary", why="go on")
    crowned.approve(number, people["bo"])
    assert crowned.read().shares["3"] == 0.0
    assert ServedModel.canary(crowned.repository.root, "risk") is None


def test_what_was_proposed_before_a_guards_step_back_is_no_way_around_it(crowned, people):
    step(crowned, people, "3", Stage.SHADOW)
    step(crowned, people, "3", Stage.CANARY)
    grow = crowned.propose("3", Stage.CANARY, "it does well", people["anna"], 0.5)
    promote = crowned.propose("3", Stage.CHAMPION, "it does well", people["anna"])
    crowned.undo("3", Stage.SHADOW, "it fails", people["guard"])
    for number in (grow, promote):
        with pytest.raises(StepRefused, match="taken back since"):
            crowned.approve(number, people["bo"])
    step(crowned, people, "3", Stage.CANARY)
    assert crowned.read().at(Stage.CANARY) == "3"


def test_a_guard_goes_back_once_and_not_step_by_step(crowned, people):
    step(crowned, people, "3", Stage.CHAMPION)
    crowned.undo("2", Stage.CHAMPION, "it fails", people["guard"])
    with pytest.raises(StepRefused, match="once"):
        crowned.undo("1", Stage.CHAMPION, "and further", people["guard"])
    step(crowned, people, "1", Stage.CHAMPION)
    assert crowned.read().at(Stage.CHAMPION) == "1"


def test_the_same_graph_is_registered_once(home, people):
    log = StageLog(ModelRepository(home), "risk")
    log.register("1", people["anna"])
    for name in ("model.onnx", "model.json"):
        shutil.copy(home / "risk" / "1" / name, home / "risk" / "2" / name)
    about = home / "risk" / "2" / "model.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "version": "2"}))
    with pytest.raises(StepRefused, match="the same graph as version 1"):
        log.register("2", people["anna"])


def test_a_clock_that_was_fast_keeps_no_guard_from_stepping_in(crowned, people):
    soon = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    with freeze_after(soon):
        step(crowned, people, "3", Stage.CHAMPION)
    crowned.undo("2", Stage.CHAMPION, "it fails", people["guard"])
    assert crowned.read().at(Stage.CHAMPION) == "2"


def test_there_is_one_version_at_each_place(crowned, people):
    step(crowned, people, "3", Stage.SHADOW)
    step(crowned, people, "3", Stage.CANARY)
    step(crowned, people, "1", Stage.CANDIDATE)
    step(crowned, people, "1", Stage.SHADOW)
    step(crowned, people, "1", Stage.CANARY)
    assert crowned.read().stages == {"1": Stage.CANARY, "2": Stage.CHAMPION, "3": Stage.SHADOW}


def test_triton_is_told_which_versions_to_hold(crowned, people):
    listed = crowned.repository.listed("risk")
    assert listed == [1, 2]
    step(crowned, people, "3", Stage.SHADOW)
    assert crowned.repository.listed("risk") == [1, 2, 3]
    crowned.repository.verify("risk", "3")


def test_a_configuration_that_a_crash_left_behind_is_mended_by_the_next_step(crowned, people):
    config = crowned.repository.root / "risk" / "config.pbtxt"
    shutil.copy(SHIPPED / "config.pbtxt", config)
    crowned.propose("3", Stage.SHADOW, "try it", people["anna"])
    assert crowned.repository.listed("risk") == [1, 2]


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: lines[:2] + lines[3:],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [*lines[:-1], lines[-1].replace(b'"by": "bo"', b'"by": "anna"')],
        lambda lines: [*lines[:-1], lines[-1].replace(b'"proposal": ', b'"proposal": 1')],
        lambda lines: [*lines, lines[-1]],
        lambda lines: [*lines[:-1], lines[-1][:-20]],
        lambda lines: [*lines[:-1], b"{}\n"],
        lambda lines: [*lines[:-1], b"\xff\xfe\n"],
        lambda lines: [*lines[:-1], b'["a"]\n'],
    ],
    ids=["cut-out", "swapped", "by", "proposal", "repeated", "cut-off", "empty", "bytes", "list"],
)
def test_a_log_that_somebody_changed_serves_nothing(crowned, damage):
    lines = crowned.path.read_bytes().splitlines(keepends=True)
    crowned.path.write_bytes(b"".join(damage(lines)))
    with pytest.raises(StagesBroken, match="Restore it"):
        crowned.read()
    with pytest.raises(IntegrityError):
        ServedModel.deciding(crowned.repository.root, "risk", None)


def test_the_champion_decides_and_a_pin_cannot_replace_it(crowned):
    root = crowned.repository.root
    assert ServedModel.deciding(root, "risk", None).ref.version == "2"
    assert ServedModel.deciding(root, "risk", "2").ref.version == "2"
    for other in ("1", "3"):
        with pytest.raises(ConfigError, match="two people"):
            ServedModel.deciding(root, "risk", other)


def test_without_a_log_the_newest_version_decides(home):
    assert ServedModel.deciding(home, "risk", None).ref.version == "3"
    assert ServedModel.deciding(home, "risk", "1").ref.version == "1"


def test_a_log_without_a_champion_decides_nothing(log, people):
    log.register("1", people["anna"])
    with pytest.raises(ConfigError, match="no version is champion"):
        ServedModel.deciding(log.repository.root, "risk", None)


def test_a_champion_that_was_exchanged_on_the_disk_does_not_decide(crowned, people):
    folder = crowned.repository.root / "risk" / "2"
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**about, "sha256": "0" * 64}))
    with pytest.raises(IntegrityError, match="not the model that was registered"):
        ServedModel.deciding(crowned.repository.root, "risk", None)
    with pytest.raises(ModelBroken):
        crowned.undo("2", Stage.CHAMPION, "back", people["guard"])


def test_two_people_at_once_write_two_whole_lines(crowned, people):
    threads = [
        threading.Thread(target=crowned.propose, args=("3", Stage.SHADOW, f"{name} wants it", people[name]))
        for name in ("anna", "bo")
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(crowned.read().open) == 16


def test_a_full_disk_leaves_the_log_as_it_was(crowned, people, monkeypatch):
    before = crowned.path.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("services.training.stages.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        crowned.propose("3", Stage.SHADOW, "try it", people["anna"])
    assert crowned.path.read_bytes() == before


def test_a_key_that_others_can_read_or_that_is_none_is_refused(tmp_path):
    Signer.create("anna", tmp_path / "anna.pem", "open sesame")
    (tmp_path / "anna.pem").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Signer.load("anna", tmp_path / "anna.pem")
    (tmp_path / "anna.pem").chmod(0o600)
    with pytest.raises(ConfigError, match="passphrase"):
        Signer.load("anna", tmp_path / "anna.pem", "open says me")
    assert Signer.load("anna", tmp_path / "anna.pem", "open sesame").name == "anna"
    (tmp_path / "none.pem").write_text("hello")
    (tmp_path / "none.pem").chmod(0o600)
    with pytest.raises(ConfigError, match="no private key"):
        Signer.load("anna", tmp_path / "none.pem")
    with pytest.raises(TrainingError, match="exists"):
        Signer.create("anna", tmp_path / "anna.pem", None)


def test_the_commands_take_a_version_to_champion(home, tmp_path):
    def call(*words: str) -> str:
        result = CliRunner().invoke(app, ["models", *words, "--repository", str(home)])
        if isinstance(result.exception, WeirError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "no steps yet" in call("stages")
    keys = {name: str(tmp_path / f"{name}.key") for name in ("anna", "bo")}
    for name, key in keys.items():
        assert f"[people.{name}]" in call("person", name, "--key", key)
    anna, bo = (("--by", name, "--key", key) for name, key in keys.items())
    call("register", "1", *anna)
    assert "Proposal 1" in call("propose", "1", "--to", "champion", "--why", "the first", *anna)
    assert "waits: proposal 1, 1 to champion, by anna: the first" in call("stages")
    assert "risk 1 is champion" in call("approve", "1", *bo)
    told = json.loads(call("stages", "--json"))
    assert told["stages"] == {"1": "champion"}
    assert [(entry["act"], entry["by"]) for entry in told["history"]] == [
        ("register", "anna"),
        ("propose", "anna"),
        ("approve", "bo"),
    ]
    assert "3 signed steps, champion 1" in call("verify")
    assert (home / "risk" / LOG).read_text().count("\n") == told["log"]["lines"] == 3
