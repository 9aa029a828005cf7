"""`--push-to-hub` and the way back, against a hub of this machine; the card's lineage; certificates loaded again."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pico
import pytest
import yaml
from fake_hub import TOKEN, fake_hub

import meristem as ms
from meristem.checkpoints import open_streamed

CARD = """---
license: llama3.2
license_link: https://example.org/LICENSE
language:
- en
base_model: acme/first
datasets: [private/data]
---

# A model

```python
import this
```

## Citation

```bibtex
@article{acme2024,
  title = {A model},
}
```
"""


@pytest.fixture(scope="module")
def hub():
    with fake_hub() as found:
        yield found


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small"
    pico.build("llama").save_pretrained(path)
    (path / "README.md").write_text(CARD)
    (path / "LICENSE").write_text("the licence's text")
    return path


def meristem(hub, home, *arguments, token=TOKEN):
    """The command line of a user whose hub is this one."""
    told = {"HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "HF_HUB_CACHE", "HF_TOKEN_PATH")}
    return subprocess.run(
        [sys.executable, "-m", "meristem.cli.main", *map(str, arguments)],
        env={**environment, **told, **({"HF_TOKEN": token} if token else {})},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def front_matter(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_a_growth_is_pushed_and_found_again(hub, small, tmp_path):
    """Up to main and to a branch, then down again under the hub's name, and grown once more."""
    done = meristem(hub, tmp_path, "grow", small, tmp_path / "big", "--width", 2, "--push-to-hub", "me/big", "--json")
    assert done.returncode == 0, done.stderr
    pushed = hub.repositories["me/big"]["main"]
    assert pushed == {path.name: path.read_bytes() for path in (tmp_path / "big").iterdir()}
    answer = json.loads(done.stdout)
    commit = hub.commit("me/big", "main")
    address = f"{hub.address}/me/big/commit/{commit}"
    assert answer["pushed"] == {"repository": "me/big", "revision": "main", "commit": address}

    again = (tmp_path / "deep", "--method", "stacking", "--depth", 2)
    done = meristem(hub, tmp_path, "grow", "me/big", *again, "--push-to-hub", "me/big", "--revision", "deeper/v2")
    assert done.returncode == 0, done.stderr
    assert f"uploaded: {hub.address}/me/big/commit/" in done.stdout
    assert hub.repositories["me/big"]["main"] == pushed
    record = json.loads(hub.repositories["me/big"]["deeper/v2"]["meristem.json"])
    assert (record["source"]["name"], record["source"]["revision"]) == ("me/big", commit)
    card = hub.repositories["me/big"]["deeper/v2"]["README.md"].decode()
    assert front_matter(card)["base_model"] == ["me/big"]
    assert front_matter(card)["license"] == "llama3.2"
    assert "@article{acme2024," in card

    shown = meristem(hub, tmp_path, "inspect", "me/big@deeper/v2", "--json")
    assert shown.returncode == 0, shown.stderr
    told = json.loads(shown.stdout)
    assert told["revision"] == hub.commit("me/big", "deeper/v2")
    assert {block["axis"]: block["length"] for block in told["blocks"]} == {"layers": 4}


def test_certificates_come_from_the_hub_or_a_directory(hub, small, tmp_path):
    meristem(hub, tmp_path, "grow", small, tmp_path / "big", "--width", 2, "--push-to-hub", "me/proved")
    program = "import meristem as ms; print(ms.load_certificate('me/proved@main').as_dict() == ms.load_certificate({!r}).as_dict())"
    done = subprocess.run(
        [sys.executable, "-c", program.format(str(tmp_path / "big"))], capture_output=True, text=True, check=False,
        env={**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN},
    )  # fmt: skip
    assert done.stdout.strip() == "True", done.stderr
    measured = ms.Growth.of(open_streamed(str(small)), ms.HyperCloning(width=2)).certificate
    assert ms.load_certificate(tmp_path / "big") == measured
    assert measured.holds


def test_a_certificate_that_is_not_there(small, tmp_path):
    with pytest.raises(ms.MeristemError, match=r"holds no meristem\.json"):
        ms.load_certificate(small)
    for text in ("[]", "{}", '{"certificate": {"holds": true}}', "not json", '{"certificate": 3}'):
        (tmp_path / "meristem.json").write_text(text)
        with pytest.raises(ms.MeristemError, match="is not a record that Meristem wrote"):
            ms.load_certificate(tmp_path)
    (tmp_path / "meristem.json").write_text('{"certificate": null}')
    assert ms.load_certificate(tmp_path) is None


@pytest.mark.parametrize(
    "options, token, words",
    [
        (["--push-to-hub", "me/refused/twice"], TOKEN, "is not the name of a repository (owner/name)"),
        (["--push-to-hub", "me/big"], "", "needs a token: `hf auth login`"),
        (["--push-to-hub", "me/big"], "hf_wrong", "does not accept the token"),
        (["--revision", "v2"], TOKEN, "--revision names the branch of --push-to-hub REPO; give both"),
    ],
)
def test_what_cannot_be_pushed_is_said_before_any_work(hub, small, tmp_path, options, token, words):
    done = meristem(hub, tmp_path / "home", "grow", small, tmp_path / "out", "--width", 2, *options, token=token)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_refused_upload_keeps_what_was_written(small, tmp_path):
    with fake_hub() as hub:
        hub.refuses = ("/commit/",)
        out = tmp_path / "out"
        done = meristem(hub, tmp_path, "grow", small, out, "--width", 2, "--push-to-hub", "me/big")
        assert done.returncode == 2
        assert f"{out} is written, and could not be uploaded to me/big" in done.stderr
        assert f"hf upload me/big {out}" in done.stderr
        assert "Traceback" not in done.stderr
        assert ms.verify(open_streamed(str(small)), open_streamed(str(out))).holds


@pytest.mark.slow
def test_every_command_that_writes_a_model_pushes_it(small, tmp_path):
    with fake_hub() as hub:
        for name, arguments in {
            "me/tiny": ("shrink", small, tmp_path / "tiny", "--hidden-size", 16),
            "me/both": ("fuse", small, small, tmp_path / "both"),
            "me/mean": ("average", small, small, tmp_path / "mean"),
        }.items():
            done = meristem(hub, tmp_path, *arguments, "--push-to-hub", name)
            assert done.returncode == 0, done.stderr
            assert {"config.json", "model.safetensors", "README.md"} <= set(hub.repositories[name]["main"])


def test_the_card_inherits_licence_language_citation_and_base(small, tmp_path):
    from command_line import here

    assert here("grow", small, tmp_path / "big", "--width", 2) == 0
    text = (tmp_path / "big" / "README.md").read_text()
    assert front_matter(text) == {
        "library_name": "transformers",
        "license": "llama3.2",
        "license_link": "https://example.org/LICENSE",
        "language": "en",
        "tags": ["meristem", "model-growth"],
        "base_model": ["acme/first"],
        "base_model_relation": "finetune",
    }
    assert "| licence of the source | llama3.2 |" in text
    assert "## Citation of the source\n\n```bibtex\n@article{acme2024,\n  title = {A model},\n}\n```" in text
    assert (tmp_path / "big" / "LICENSE").read_text() == "the licence's text"


def test_a_fusion_names_every_parents_licence(small, tmp_path):
    from command_line import here

    other = tmp_path / "other"
    pico.build("llama", seed=5).save_pretrained(other)
    (other / "README.md").write_text("---\nlicense: mit\nbase_model: [acme/second]\n---\n")
    assert here("fuse", small, other, tmp_path / "both") == 0
    found = front_matter((tmp_path / "both" / "README.md").read_text())
    assert found["license"] == ["llama3.2", "mit"]
    assert found["base_model"] == ["acme/first", "acme/second"]
    assert found["base_model_relation"] == "merge"


@pytest.mark.parametrize(
    "card",
    [
        "---\nlicense: !!python/object/apply:os.system [true]\n---\n",
        "---\n- a\n- list\n---\n",
        "---\nlicense: {a: b}\nlanguage: 3\nbase_model: [[x]]\n---\n",
        "---\nlicense: mit",
        "no front matter\n---\nlicense: mit\n---\n",
        "---\nlicense: |\n  two\n  lines\n---\n",
    ],
)
def test_a_card_that_cannot_be_read_says_nothing(card, tmp_path):
    from meristem.checkpoints.lineage import lineage

    (tmp_path / "README.md").write_text(card)
    found = lineage([tmp_path, tmp_path / "not there"])
    assert (dict(found.metadata), list(found.citations), list(found.ancestors)) == ({}, [], [])
