from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner, Result

from argosy.cli import shell
from argosy.cli.main import main
from argosy.config import ServeConfig
from argosy.deploy.spec import DeploymentSpec
from argosy.errors import ArgosyError, InputError

Call = Callable[..., Result]


def find_commands() -> dict[str, click.Command]:
    context = click.Context(main)
    found = {name: main.get_command(context, name) for name in main.list_commands(context)}
    leaves = {name: command for name, command in found.items() if not isinstance(command, click.Group)}
    for name, command in found.items():
        if isinstance(command, click.Group):
            leaves |= {f"{name} {inner}": command.commands[inner] for inner in command.commands}
    return leaves


def test_help_lists_every_command_and_imports_nothing_large() -> None:
    program = (
        "import sys\nfrom argosy.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'numpy', 'msgspec', 'httpx', 'rich', 'onnx', 'onnxruntime', 'torch', 'sqlite3'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[-1] == "[]"
    assert [line.split()[0] for line in lines[lines.index("Commands:") + 1 : -1]] == main.list_commands(click.Context(main))


@pytest.mark.parametrize("name", find_commands())
def test_every_command_has_help_home_and_json(name: str) -> None:
    result = CliRunner().invoke(main, [*name.split(), "--help"])
    assert result.exit_code == 0
    assert "--home" in result.stdout and "--json" in result.stdout
    assert find_commands()[name].help


@pytest.mark.parametrize("name", find_commands())
def test_every_option_reaches_its_function(name: str) -> None:
    command = find_commands()[name]
    assert command.callback is not None
    function = inspect.unwrap(command.callback)
    parameters = inspect.signature(function).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        assert {parameter.name for parameter in command.params} == {*parameters, "given_home", "is_json"} - {"shell"}


def test_serve_has_an_option_for_every_setting() -> None:
    options = {parameter.name for parameter in find_commands()["serve"].params}
    assert options - {"given_home", "is_json", "references"} == set(ServeConfig.__struct_fields__) - {"home"}


def test_deploy_has_an_option_for_every_setting() -> None:
    options = {parameter.name for parameter in find_commands()["deploy"].params}
    settings = set(DeploymentSpec.__struct_fields__) - {"name", "model", "version"}
    assert options - {"given_home", "is_json", "reference", "name", "is_waiting", "allow_signature_change"} == settings


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nothing"], "No such command 'nothing'"),
        (["models", "--nothing"], "--nothing"),
        (["serve", "--http-port", "x"], "not a valid integer"),
        (["models", "--alias", "champion=1"], "needs the NAME"),
        (["models", "m", "--alias", "champion"], "expected ALIAS=VERSION"),
        (["import", "m.onnx"], "--name"),
        (["import", "m.onnx", "--name", "m", "--repeatable"], "are for .py files"),
        (["predict", "m"], "either --input FILE or --golden N"),
        (["predict", "m", "--golden", "0", "--input", "x.npy"], "either --input FILE or --golden N"),
        (["logs", "--lines", "0"], "--lines"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], text: str, call: Call) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert text in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "key", "text"),
    [
        (["models", "nothing"], "unknown_model", "Unknown model 'nothing'"),
        (["models", "../x"], "bad_name", "'../x' is not valid"),
        (["deploy", "nothing"], "unknown_model", "Unknown model 'nothing'"),
        (["deploy", "m@"], "bad_reference", "'m@' is not valid"),
        (["deploy", "m:2"], "bad_reference", "expected NAME, NAME@VERSION or NAME@ALIAS"),
        (["undeploy", "nothing"], "unknown_deployment", "Unknown model 'nothing'"),
        (["rollback", "nothing"], "unknown_deployment", "Unknown model 'nothing'"),
        (["status"], "no_server", "No server runs"),
        (["stats"], "no_server", "No server runs"),
        (["logs", "control"], "unknown_choice", "Unknown log 'control'; known: none"),
        (["import", "nothing.onnx", "--name", "m"], "missing_file", "nothing.onnx does not exist"),
        (["import", "m.py", "--name", "m", "--signature", "nothing.json"], "missing_file", "nothing.json does not exist"),
        (["predict", "m", "--input", "x.csv"], "unknown_choice", "known: .json, .npy, .npz"),
        (["predict", "m", "--input", "x.npz"], "missing_file", "x.npz does not exist"),
        (["predict", "m", "--golden", "0"], "unknown_model", "Unknown model 'm'"),
        (["predict", "m@2", "--golden", "0"], "bad_option", "--version N asks one of its versions"),
        (["train", "recipe:nothing"], "unknown_recipe", "Unknown recipe 'nothing'; known: digits"),
        (["compress", "nothing"], "unknown_model", "Unknown model 'nothing'"),
        (["serve", "--http-port", "70000"], "bad_option", "`http_port` is 70000"),
        (["serve", "--deploy", "nothing"], "unknown_model", "Unknown model 'nothing'"),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, list) else None,
)
def test_failure_exits_with_1_and_says_why(arguments: list[str], key: str, text: str, call: Call) -> None:
    result = call(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and text in result.stderr
    as_json = call(*arguments, "--json")
    assert as_json.exit_code == 1
    found = json.loads(as_json.stdout)
    assert found["key"] == key and text in found["error"] and set(found) == {"error", "key", "hint"}
    assert as_json.stderr == ""


def test_failure_shows_its_hint(call: Call) -> None:
    assert call("status").stderr.splitlines()[1] == "hint: start one with: argosy serve"


def test_name_of_other_bytes_than_text_is_shown_written_out(call: Call) -> None:
    path = "/nowhere/\udcff.py:train"
    done = call("search", path, "--space", "x=1:2", "--json")
    assert done.exit_code == 1 and "/nowhere/\\udcff.py" in json.loads(done.stdout)["error"]
    done = call("search", path, "--space", "x=1:2")
    assert done.exit_code == 1 and "/nowhere/\\udcff.py" in done.stderr and "Traceback" not in done.output


def test_home_option_wins_over_the_environment(call: Call, tmp_path: Path) -> None:
    found = json.loads(call("config", "show", "--home", tmp_path / "other", "--json").stdout)
    assert found["home"] == {"value": str(tmp_path / "other"), "source": "command line"}
    assert json.loads(call("config", "show", "--json").stdout)["home"]["value"] == str(tmp_path / "home")


def test_config_show_says_which_source_won(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "config.toml").write_text("[serve]\nhttp_port = 9000\nnum_fronts = 2\n")
    monkeypatch.setenv("ARGOSY_HTTP_PORT", "9100")
    result = call("config", "show")
    assert result.exit_code == 0
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
    assert rows["http_port"] == ["9100", "environment"]
    assert rows["num_fronts"] == ["2", "file"]
    assert rows["grpc_port"] == ["8001", "default"]
    assert set(rows) == {"SETTING", *ServeConfig.__struct_fields__}


def test_config_show_refuses_what_is_unknown(call: Call, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "config.toml").write_text("[serve]\nhtp_port = 1\n")
    result = call("config", "show")
    assert result.exit_code == 1
    assert "unknown key `htp_port`" in result.stderr


def test_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert version("argosy") in CliRunner().invoke(main, ["--version"]).stdout


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB"), (5 << 40, "5120.0 GiB")]
)
def test_bytes_are_shown_in_their_unit(count: int, text: str) -> None:
    assert shell.format_bytes(count) == text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("load_s", 0.0125, "12.50 ms"),
        ("train_s", 12.5, "12.50 s"),
        ("size_bytes", 2048, "2.0 KiB"),
        ("accuracy", 0.98765, "0.9877"),
        ("rows_per_s", 5322.42, "5322"),
    ],
)
def test_measurements_are_shown_in_their_unit(name: str, value: float, text: str) -> None:
    assert shell.format_measurement(name, value) == text
    assert shell.format_seconds(None) == "> 20 s"


def test_what_is_raised_inside_ends_the_command(call: Call) -> None:
    @shell.command("broken")
    def broken(shell: shell.Shell) -> None:
        raise InputError("bad_name", kind="Model", got="{x}")

    result = CliRunner().invoke(broken)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "'{x}'" in result.stderr
    assert issubclass(InputError, ArgosyError) and msgspec.json.decode(CliRunner().invoke(broken, ["--json"]).stdout)
