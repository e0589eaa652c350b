"""Settings come from one file and the environment, and say in one line what is wrong and where."""

from pathlib import Path

import pytest

from weir.config import KafkaSettings, TopicSettings, TritonSettings
from weir.errors import ConfigError


def write(text: str, path: Path = Path("weir.toml")) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_a_file_the_defaults_hold():
    assert KafkaSettings.load().bootstrap_servers == "localhost:9092"


def test_the_environment_wins_over_the_file_and_an_argument_over_both(monkeypatch):
    write('[kafka]\nbootstrap_servers = "file:1"\n')
    assert KafkaSettings.load().bootstrap_servers == "file:1"
    monkeypatch.setenv("WEIR_KAFKA_BOOTSTRAP_SERVERS", "environment:2")
    assert KafkaSettings.load().bootstrap_servers == "environment:2"
    assert KafkaSettings.load(bootstrap_servers="argument:3").bootstrap_servers == "argument:3"


def test_the_embedded_stack_gives_the_sections_that_ones_own_file_lacks():
    write(
        '[triton]\nendpoint = "embedded:1"\n[kafka]\nbootstrap_servers = "embedded:2"\n',
        Path(".weir/run/weir.toml"),
    )
    assert TritonSettings.load().endpoint == "embedded:1"
    write('[kafka]\nbootstrap_servers = "mine:3"\n')
    assert KafkaSettings.load().bootstrap_servers == "mine:3"
    assert TritonSettings.load().endpoint == "embedded:1"


def test_a_named_file_stands_alone(monkeypatch, tmp_path):
    write('[triton]\nendpoint = "embedded:1"\n', Path(".weir/run/weir.toml"))
    write('[kafka]\nbootstrap_servers = "named:2"\n', tmp_path / "other.toml")
    monkeypatch.setenv("WEIR_CONFIG", str(tmp_path / "other.toml"))
    assert KafkaSettings.load().bootstrap_servers == "named:2"
    assert TritonSettings.load().endpoint == "localhost:8001"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[topics]\npartitions = -5\n", r"weir\.toml \[topics\] partitions: .* greater than or equal to 1"),
        ("[topics]\npartition = 5\n", r"weir\.toml \[topics\] partition: Extra inputs"),
        ("topics = 5\n", r"weir\.toml: \[topics\] must be a table"),
        ("[topics\n", r"weir\.toml: .*Correct the file"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place(text, says):
    write(text)
    with pytest.raises(ConfigError, match=says) as caught:
        TopicSettings.load()
    assert "\n" not in str(caught.value)


def test_a_wrong_variable_is_named(monkeypatch):
    monkeypatch.setenv("WEIR_TOPICS_PARTITIONS", "many")
    with pytest.raises(ConfigError, match=r"WEIR_TOPICS_PARTITIONS: .*valid integer"):
        TopicSettings.load()


def test_a_named_file_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setenv("WEIR_CONFIG", "nowhere.toml")
    with pytest.raises(ConfigError, match=r"WEIR_CONFIG names nowhere\.toml"):
        KafkaSettings.load()


def test_a_password_never_shows():
    assert "hunter2" not in repr(KafkaSettings(sasl_password="hunter2"))
