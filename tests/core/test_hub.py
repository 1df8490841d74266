"""Checkpoints on the Hugging Face Hub: the real client against a server on the loopback."""

import hashlib
import io
import logging
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from mobile_sam_plugin import MobileSam, build_sam_vit_t, checkpoint
from mobile_sam_plugin.checkpoint import (
    BUNDLED_FILE,
    HUB_FILE,
    download,
    locate_checkpoint,
    read_checkpoint,
)

from ..conftest import needs
from ..hub import Client, Cut, Hub

pytestmark = pytest.mark.process

UPSTREAM = "nielsr/mobilesam"
AUTHORS = "dhkim2810/MobileSAM"
TOKEN = {"HF_TOKEN": "hf_of_a_test"}
needs_resuming = needs(
    "huggingface-hub", "2.0", "resumes connections that are cut, in 10 MiB pieces,"
)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Client:
    return Client(hub.url, tmp_path / "hf_home")


@pytest.fixture(scope="module")
def weights() -> bytes:
    return BUNDLED_FILE.read_bytes()


@pytest.fixture(scope="module")
def other_weights(weights: bytes) -> bytes:
    tensors = safetensors.torch.load(weights)
    tensors["mask_decoder.iou_token.weight"] += 1
    return safetensors.torch.save(tensors)


# What the client's processes run.


def built(*checkpoint: str) -> str:
    return fingerprint(build_sam_vit_t(*checkpoint).state_dict())


def built_by_default(sha256: str) -> tuple[str, list[str]]:
    """The default weights, and the lines in the log; the authors' file is not to be had here."""
    checkpoint.AUTHORS_SHA256 = sha256
    lines = Lines()
    logging.getLogger("mobile_sam_plugin").addHandler(lines)
    return built(), lines.found


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())


def located(*checkpoints: str) -> list[str]:
    return [fingerprint(read_checkpoint(locate_checkpoint(name))) for name in checkpoints]


def located_without_pauses(checkpoint: str) -> list[str]:
    time.sleep = lambda seconds: None  # the pauses between the client's attempts add up to 23 s
    return located(checkpoint)


def built_without_pauses() -> str:
    time.sleep = lambda seconds: None
    return built()


def pretrained(name: str) -> str:
    model = MobileSam.from_pretrained(name)
    assert not model.training
    return fingerprint(model.state_dict())


def save_and_load(folder: str) -> tuple[str, str]:
    model = slightly_trained()
    model.save_pretrained(folder)
    return fingerprint(model.state_dict()), pretrained(folder)


def push_and_load(repo_id: str) -> tuple[str, str]:
    model = slightly_trained()
    model.push_to_hub(repo_id)
    return fingerprint(model.state_dict()), pretrained(repo_id)


def slightly_trained() -> MobileSam:
    """A model whose weights take all of float32's bits, unlike those of the bundled file."""
    model = build_sam_vit_t("bundled")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 1e-5)
    return model


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Equal for equal values under equal names, in whatever order and float dtype they are."""
    digest = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        value = value.float() if value.is_floating_point() else value
        digest.update(f"{key} {tuple(value.shape)} {value.dtype} ".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def fingerprint_of(file: bytes) -> str:
    return fingerprint(safetensors.torch.load(file))


# Downloads


def test_default_is_downloaded_once(hub: Hub, client: Client, weights: bytes) -> None:
    hub.commit(UPSTREAM, {HUB_FILE: weights})
    assert client(built) == fingerprint_of(weights)
    assert [request.bytes_sent for request in hub.file_bodies()] == [len(weights)]

    hub.requests.clear()
    assert client(built) == fingerprint_of(weights)
    assert hub.requests, "a branch may have moved, so the Hub is asked"
    assert hub.file_bodies() == []


def test_environment_overrides_the_default_and_nothing_else(
    hub: Hub, client: Client, weights: bytes, other_weights: bytes, tmp_path: Path
) -> None:
    hub.commit(UPSTREAM, {HUB_FILE: weights})
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(other_weights)
    assert client(built, MOBILE_SAM_CHECKPOINT=str(mine)) == fingerprint_of(other_weights)
    assert hub.requests == []
    named = client(located, f"hf://{UPSTREAM}", MOBILE_SAM_CHECKPOINT=str(mine))
    assert named == [fingerprint_of(weights)]


def test_environment_may_name_a_repository(
    hub: Hub, client: Client, weights: bytes, other_weights: bytes
) -> None:
    hub.commit(UPSTREAM, {HUB_FILE: weights})
    hub.commit("me/mine", {"fine/tuned.safetensors": other_weights})
    name = "hf://me/mine/fine/tuned.safetensors"
    assert client(built, MOBILE_SAM_CHECKPOINT=name) == fingerprint_of(other_weights)


def test_revisions(hub: Hub, client: Client, weights: bytes, other_weights: bytes) -> None:
    first = hub.commit("me/mine", {HUB_FILE: weights, "other.safetensors": other_weights})
    hub.commit("me/mine", {HUB_FILE: other_weights})
    hub.repositories["me/mine"].references |= {"v1": first, "refs/pr/1": first}
    old, new = fingerprint_of(weights), fingerprint_of(other_weights)
    by_name = {
        "hf://me/mine": new,
        "hf://me/mine@main": new,
        "hf://me/mine@v1": old,
        "hf://me/mine@refs/pr/1": old,
        f"hf://me/mine@{first}": old,
        f"hf://me/mine/{HUB_FILE}@v1": old,
        "hf://me/mine/other.safetensors@v1": new,
    }
    assert dict(zip(by_name, client(located, *by_name), strict=True)) == by_name
    # The two contents are fetched once each, whatever the number of names for them.
    assert len(hub.file_bodies()) == 2


# The authors' own file, where the default is gone


@pytest.fixture(scope="module")
def torch_file(other_weights: bytes) -> bytes:
    file = io.BytesIO()
    torch.save(safetensors.torch.load(other_weights), file)
    return file.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def asked_for_the_authors(hub: Hub) -> bool:
    return any(AUTHORS in request.path for request in hub.requests)


@pytest.mark.parametrize("variables", [{}, TOKEN], ids=["stranger", "logged in"])
@pytest.mark.parametrize("how", ["no repository", "no file", "gated"])
def test_default_that_is_gone(
    hub: Hub, client: Client, torch_file: bytes, how: str, variables: dict[str, str]
) -> None:
    if how != "no repository":
        hub.commit(UPSTREAM, {"README.md": b"moved"}, gated=how == "gated")
    hub.commit(AUTHORS, {"mobile_sam.pt": torch_file})
    found, lines = client(built_by_default, sha256(torch_file), **variables)
    assert found == fingerprint(torch.load(io.BytesIO(torch_file)))
    (line,) = lines
    assert line.startswith(f"hf://{UPSTREAM} is not to be had (")
    assert line.endswith(f"): taking hf://{AUTHORS}/mobile_sam.pt")


def test_another_file_in_place_of_the_authors(hub: Hub, client: Client, torch_file: bytes) -> None:
    hub.commit(AUTHORS, {"mobile_sam.pt": torch_file})
    with pytest.raises(ValueError, match="is not the authors' file") as raised:
        client(built)
    assert_mentions(raised, AUTHORS, sha256(torch_file), checkpoint.AUTHORS_SHA256, "delete it")


def test_both_are_gone(hub: Hub, client: Client) -> None:
    with pytest.raises(FileNotFoundError, match="no repository") as raised:
        client(built)
    assert_mentions(raised, f"'{AUTHORS}'")


def test_default_is_taken_where_it_is(hub: Hub, client: Client, weights: bytes) -> None:
    hub.commit(UPSTREAM, {HUB_FILE: weights})
    assert client(built_by_default, "") == (fingerprint_of(weights), [])
    assert not asked_for_the_authors(hub)


def test_names_that_a_user_gives_stand_for_themselves(
    hub: Hub, client: Client, torch_file: bytes
) -> None:
    hub.commit(AUTHORS, {"mobile_sam.pt": torch_file})
    name = f"hf://{UPSTREAM}"
    for arguments, variables in (((name,), {}), ((), {"MOBILE_SAM_CHECKPOINT": name})):
        with pytest.raises(FileNotFoundError, match=f"no repository '{UPSTREAM}'"):
            client(built, *arguments, **variables)
    assert not asked_for_the_authors(hub)


def test_a_hub_that_is_down_is_not_gone(hub: Hub, client: Client, torch_file: bytes) -> None:
    hub.commit(AUTHORS, {"mobile_sam.pt": torch_file})
    hub.outage = True
    with pytest.raises(ConnectionError, match=UPSTREAM):
        client(built_without_pauses)
    assert not asked_for_the_authors(hub)


# Without a connection


def test_offline_mode_uses_the_cache(hub: Hub, client: Client, weights: bytes) -> None:
    hub.commit(UPSTREAM, {HUB_FILE: weights})
    client(located, f"hf://{UPSTREAM}")
    hub.requests.clear()
    assert client(built, HF_HUB_OFFLINE="1") == fingerprint_of(weights)
    assert client(pretrained, UPSTREAM, HF_HUB_OFFLINE="1") == fingerprint_of(weights)
    assert hub.requests == []


def test_hub_that_is_down_leaves_the_cache(hub: Hub, client: Client, weights: bytes) -> None:
    hub.commit(UPSTREAM, {HUB_FILE: weights})
    client(located, f"hf://{UPSTREAM}")
    hub.stop()
    assert client(located, f"hf://{UPSTREAM}") == [fingerprint_of(weights)]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("offline mode", "offline mode is enabled"),
        pytest.param(
            "refused",
            "refused",
            marks=needs("huggingface-hub", "1.0", "tells why"),
        ),
        ("503", "503"),
    ],
)
def test_no_connection_and_no_cache(
    hub: Hub, client: Client, weights: bytes, how: str, reason: str
) -> None:
    hub.commit(UPSTREAM, {HUB_FILE: weights})
    hub.outage = how == "503"
    if how == "refused":
        hub.stop()
    variables = {"HF_HUB_OFFLINE": "1"} if how == "offline mode" else {}
    with pytest.raises(ConnectionError) as raised:
        client(located_without_pauses, f"hf://{UPSTREAM}", **variables)
    assert_mentions(raised, HUB_FILE, UPSTREAM, hub.url, reason, "connect and try again")
    assert_mentions(raised, "'bundled'")
    traceback = str(raised.value.__cause__)  # of the client's process
    assert "ConnectionError: " in traceback and "huggingface_hub" not in traceback
    if how == "offline mode":
        assert hub.requests == []


def test_from_pretrained_offline_without_a_cache(client: Client) -> None:
    with pytest.raises(ConnectionError) as raised:
        client(pretrained, UPSTREAM, HF_HUB_OFFLINE="1")
    assert_mentions(raised, HUB_FILE, UPSTREAM, "connect and try again")


def downloaded_again(repo_id: str) -> str:
    return str(download(repo_id, force_download=True))


@pytest.mark.parametrize("variables", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["refused", "offline"])
def test_no_connection_to_download_again(
    hub: Hub, client: Client, weights: bytes, variables: dict[str, str]
) -> None:
    """The client tells it as a ValueError, whose cause is the connection."""
    hub.commit(UPSTREAM, {HUB_FILE: weights})
    client(located, f"hf://{UPSTREAM}")
    hub.stop()
    with pytest.raises(ConnectionError) as raised:
        client(downloaded_again, UPSTREAM, **variables)
    assert_mentions(raised, HUB_FILE, UPSTREAM, "try again")


def with_an_unknown_option(repo_id: str) -> str:
    return str(download(repo_id, no_such_option=True))


def test_bugs_are_no_lost_connections(hub: Hub, client: Client) -> None:
    with pytest.raises(TypeError, match="no_such_option"):
        client(with_an_unknown_option, UPSTREAM)


@needs_resuming
def test_cut_connection_is_resumed(hub: Hub, client: Client, weights: bytes) -> None:
    hub.commit(UPSTREAM, {HUB_FILE: weights})
    hub.cuts.append(Cut(after_bytes=15_000_000))
    assert client(located, f"hf://{UPSTREAM}") == [fingerprint_of(weights)]
    first, second = hub.file_bodies()
    assert (first.range, first.bytes_sent) == (None, 15_000_000)
    # The client keeps whole pieces of 10 MiB and goes on behind the last one.
    kept = 10 * 1024 * 1024
    assert (second.range, second.status) == (f"bytes={kept}-", 206)
    assert second.bytes_sent == len(weights) - kept


@pytest.mark.parametrize(
    "cuts",
    [[Cut(15_000_000, "reset")], pytest.param([Cut(1000)] * 6, marks=needs_resuming)],
    ids=["reset", "cut again and again"],
)
def test_broken_download_leaves_nothing_wrong_behind(
    hub: Hub, client: Client, weights: bytes, cuts: list[Cut]
) -> None:
    hub.commit(UPSTREAM, {HUB_FILE: weights})
    hub.cuts.extend(cuts)
    with pytest.raises(ConnectionError) as raised:
        client(located_without_pauses, f"hf://{UPSTREAM}")
    assert_mentions(raised, HUB_FILE, UPSTREAM, "try again")
    assert hub.cuts == []
    assert client(located, f"hf://{UPSTREAM}") == [fingerprint_of(weights)]


# What the Hub refuses


@pytest.mark.parametrize("variables", [{}, TOKEN], ids=["stranger", "logged in"])
@pytest.mark.parametrize(
    ("checkpoint", "mentions"),
    [
        ("hf://no/such", ["'no/such'", "no repository", "private", "HF_TOKEN"]),
        (f"hf://{UPSTREAM}/no.pt", [f"'{UPSTREAM}'", "'no.pt'", f"hf://{UPSTREAM}/FILE"]),
        (f"hf://{UPSTREAM}@no", [f"'{UPSTREAM}'", "no revision 'no'", "branch", "tag", "commit"]),
    ],
)
def test_absent(
    hub: Hub, client: Client, checkpoint: str, mentions: list[str], variables: dict[str, str]
) -> None:
    hub.commit(UPSTREAM, {"README.md": b"no weights here"})
    with pytest.raises(FileNotFoundError) as raised:
        client(located, checkpoint, **variables)
    assert_mentions(raised, *mentions)


def test_repository_without_the_usual_file(hub: Hub, client: Client) -> None:
    hub.commit(UPSTREAM, {"README.md": b"no weights here"})
    with pytest.raises(FileNotFoundError) as raised:
        client(pretrained, UPSTREAM)
    assert_mentions(raised, UPSTREAM, HUB_FILE)


@pytest.mark.parametrize("repo_id", ["-owner/repo", "owner/re po"])
def test_names_that_the_hub_does_not_allow(hub: Hub, client: Client, repo_id: str) -> None:
    with pytest.raises(ValueError) as raised:
        client(located, f"hf://{repo_id}")
    assert_mentions(raised, repr(repo_id))
    assert hub.requests == []


@pytest.mark.parametrize("variables", [{}, TOKEN], ids=["stranger", "logged in"])
def test_gated(hub: Hub, client: Client, weights: bytes, variables: dict[str, str]) -> None:
    hub.commit("me/gated", {HUB_FILE: weights}, gated=True)
    with pytest.raises(PermissionError) as raised:
        client(located, "hf://me/gated", **variables)
    assert_mentions(raised, "'me/gated'", f"{hub.url}/me/gated", "hf auth login", "HF_TOKEN")


# What is there, but is no MobileSAM


def test_web_page_in_place_of_the_weights(hub: Hub, client: Client) -> None:
    hub.commit(UPSTREAM, {HUB_FILE: b"\n<!DOCTYPE html><html><body>Sign in</body></html>"})
    with pytest.raises(ValueError, match="web page") as raised:
        client(built)
    assert_mentions(raised, "nielsr--mobilesam", HUB_FILE, "download the file itself")


def test_another_sam_in_place_of_the_weights(hub: Hub, client: Client) -> None:
    vit_b = {"image_encoder.pos_embed": torch.zeros(1, 64, 64, 768)}
    hub.commit(UPSTREAM, {HUB_FILE: safetensors.torch.save(vit_b)})
    with pytest.raises(ValueError, match="vit_b") as raised:
        client(built)
    assert_mentions(raised, "nielsr--mobilesam", "sam_model_registry['vit_b']")


# The model's own methods


def test_from_pretrained_takes_no_notice_of_a_foreign_config(
    hub: Hub, client: Client, weights: bytes
) -> None:
    config = b'{"model_type": "sam", "image_encoder": {"depth": 12}, "pixel_mean": [0, 0, 0]}'
    hub.commit(UPSTREAM, {HUB_FILE: weights, "config.json": config})
    assert client(pretrained, UPSTREAM) == fingerprint_of(weights)


def test_save_pretrained_is_exact_and_stays_on_this_machine(
    hub: Hub, client: Client, tmp_path: Path
) -> None:
    folder = tmp_path / "saved"
    saved, loaded = client(save_and_load, str(folder))
    assert saved == loaded == fingerprint_of((folder / HUB_FILE).read_bytes())
    assert saved != fingerprint_of(BUNDLED_FILE.read_bytes())
    assert hub.requests == []


@needs("huggingface-hub", "0.36", "asks what the Hub of these tests answers")
def test_push_to_hub_is_exact_and_comes_with_a_card(hub: Hub, client: Client) -> None:
    pushed, loaded = client(push_and_load, "me/fine-tuned", **TOKEN)
    repository = hub.repositories["me/fine-tuned"]
    files = repository.commits[repository.references["main"]]
    assert pushed == loaded == fingerprint_of(files[HUB_FILE])
    assert hub.file_bodies(), "what was loaded came from the Hub"

    card = files["README.md"].decode()
    metadata, text = re.fullmatch(r"---\n(.*?)\n---\n(.*)", card, re.DOTALL).groups()  # type: ignore[union-attr]
    assert "library_name: mobile-sam-plugin" in metadata
    assert "license: apache-2.0" in metadata
    assert "pipeline_tag: mask-generation" in metadata
    assert "from mobile_sam_plugin import MobileSam" in text
    assert "{{" not in card and "}}" not in card


def assert_mentions(raised: pytest.ExceptionInfo[Exception], *parts: str) -> None:
    message = str(raised.value)
    assert [part for part in parts if part not in message] == [], message
