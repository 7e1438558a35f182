"""Sending an export to a hub: huggingface_hub's own client against a small hub on loopback."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from imprint.disk import replace_text
from imprint.export.hub import find_secrets
from test_export_run import frozen, full, golden_run, lora, run  # noqa: F401 - fixtures

TOKEN = "hf_" + "aB3" * 12


@dataclass
class Hub:
    """What a hub was asked, and the repositories that it holds: name → (private, path → content)."""

    port: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)
    repositories: dict[str, tuple[bool, dict[str, bytes]]] = field(default_factory=dict)
    strangers: list[str] = field(default_factory=list)  # asked without the token
    refuse: int = 0  # answer everything with this status

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, object]]:
        self.asked.append((method, path))
        if self.refuse:
            return self.refuse, {"error": "no"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}" if given.get("organization") else given["name"]
            private = given.get("private", given.get("visibility") == "private")
            self.repositories[name] = (bool(private), {})
            return 200, {"url": f"http://127.0.0.1:{self.port}/{name}", "name": name}
        name = "/".join(path.split("/")[3:5])
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}
        private, files = self.repositories[name]
        if "/preupload/" in path:
            wanted = [one["path"] for one in json.loads(body)["files"]]
            modes = [{"path": one, "uploadMode": "regular", "shouldIgnore": False} for one in wanted]
            return 200, {"files": modes}
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return 200, {
                "commitUrl": f"http://127.0.0.1:{self.port}/{name}/commit/1",
                "commitOid": "1",
                "hookOutput": "",
            }
        return 200, {"id": name, "private": private, "siblings": [{"rfilename": one} for one in files]}


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    """A hub that huggingface_hub speaks to in this process."""
    from huggingface_hub import constants

    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if "/me/" in self.path and self.headers["Authorization"] != f"Bearer {TOKEN}":
                hub.strangers.append(self.path)
            status, value = hub.answer(self.command, self.path.partition("?")[0], body)
            text = json.dumps(value).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{hub.port}")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_look_sends_nothing_and_yes_sends_everything_in_private(run, hub, cli):  # noqa: F811
    looked = cli("export", run, "--to", "hub", "me/mine")
    assert looked.code == 0, looked.err
    assert "model.safetensors" in looked.out
    assert "would be made, private" in looked.out
    assert "--yes" in looked.out
    assert {method for method, _ in hub.asked} == {"GET"}
    assert hub.repositories == {}

    sent = cli("export", run, "--to", "hub", "me/mine", "--yes", "--json")
    assert sent.code == 0, sent.err
    private, files = hub.repositories["me/mine"]
    assert private
    folder = run / "export" / "hf"  # made once, by the look
    assert files == {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }
    facts = json.loads(sent.out)
    assert facts["hub"]["sent"].endswith("/commit/1")
    said = "".join((looked.out, looked.err, sent.out, sent.err))
    assert TOKEN not in said
    assert not any(TOKEN.encode() in p.read_bytes() for p in run.rglob("*") if p.is_file())

    assert hub.strangers == []

    again = cli("export", run, "--to", "hub", "me/mine")
    assert "replaces the one there" in again.out
    assert cli("export", run, "--to", "hub", "me/mine", "--public").code == 2  # it is private
    assert cli("export", run, "--to", "hub", "me/open", "--public", "--yes").code == 0
    assert not hub.repositories["me/open"][0]


def test_another_export_in_its_place_is_not_sent(run, hub, cli):  # noqa: F811
    assert cli("export", run).code == 0
    ended = cli("export", run, "--to", "hub", "me/mine", "--dtype", "float16")
    assert ended.code == 2
    assert "another export" in ended.err
    (run / "export" / "hf" / "README.md").write_text("changed")
    assert cli("export", run, "--to", "hub", "me/mine").code == 2
    assert hub.asked == []


def test_an_export_that_was_compared_is_sent_unless_it_failed(golden_run, hub, cli):  # noqa: F811
    assert cli("export", golden_run).code == 0
    assert cli("parity", golden_run, golden_run / "export" / "hf").code == 0
    looked = cli("export", golden_run, "--to", "hub", "me/mine")
    assert looked.code == 0, looked.err
    path = golden_run / "export" / "hf" / "parity.json"
    found = json.loads(path.read_text()) | {"faults": ["log-probabilities differ"]}
    replace_text(path.parent, path.name, json.dumps(found))
    ended = cli("export", golden_run, "--to", "hub", "me/mine", "--yes")
    assert ended.code == 1
    assert "an export that failed its proof is not sent" in ended.err
    assert {method for method, _ in hub.asked} == {"GET"}


def test_a_long_secret_of_the_environment_is_looked_for(tmp_path):
    """Credentials are given as whole files too, longer than any path may be."""
    secret = json.dumps({"private": "aB3" * 400})
    (tmp_path / "recipe.yaml").write_text(f"note: {secret}")
    assert list(find_secrets(tmp_path, {"MY_CREDENTIALS": secret})) == [
        ("recipe.yaml", "the value of MY_CREDENTIALS")
    ]


def test_an_adapter_with_a_base_of_this_machine_is_not_sent(run, hub, cli):  # noqa: F811
    ended = cli("export", run, "--to", "hub", "me/mine", "--adapter-only", "--yes")
    assert ended.code == 2
    assert "folder of this machine" in ended.err
    assert hub.asked == []


@pytest.mark.parametrize(
    ("secret", "told"),
    [
        ("ghp_" + "a1B2" * 9, "a GitHub token"),
        ("-----BEGIN RSA PRIVATE KEY-----", "a private key"),
        ("correct-horse-battery", "the value of MY_SECRET"),
        (TOKEN, "a Hugging Face token"),
    ],
)
def test_secrets_are_not_sent_and_not_repeated(secret, told, run, hub, cli, monkeypatch):  # noqa: F811
    from imprint.train.checkpoint import seal

    monkeypatch.setenv("MY_SECRET", "correct-horse-battery")
    model = run / "model"
    with (model / "chat_template.jinja").open("a") as file:
        file.write("{# " + secret + " #}")
    seal(model, model)
    ended = cli("export", run, "--to", "hub", "me/mine", "--yes")
    assert ended.code == 2
    assert f"chat_template.jinja: {told}" in ended.err
    assert secret not in ended.err + ended.out
    assert hub.asked == []


@pytest.mark.parametrize(
    ("status", "told"), [(401, "make a new token"), (403, "may write"), (500, "try again")]
)
def test_what_the_hub_refuses_is_told(status, told, run, hub, cli):  # noqa: F811
    hub.refuse = status
    ended = cli("export", run, "--to", "hub", "me/mine", "--yes")
    assert ended.code == 2
    assert "the hub refuses" in ended.err
    assert told in ended.err
    assert TOKEN not in ended.err


def test_without_a_token_or_a_network_it_says_so(run, cli, monkeypatch):  # noqa: F811
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert "no token" in cli("export", run, "--to", "hub", "me/mine").err
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "switched off" in cli("export", run, "--to", "hub", "me/mine").err
    assert not (run / "export").exists()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    ended = cli("export", run, "--to", "hub", "me/mine")
    assert ended.code == 2
    assert "cannot be reached" in ended.err


@pytest.mark.parametrize("given", [("--yes",), ("--public",), ("--to", "hub"), ("--to", "hub", "not a name")])
def test_what_has_no_meaning_is_refused(given, run, cli, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert cli("export", run, *given).code == 2
    assert not (run / "export").exists()
