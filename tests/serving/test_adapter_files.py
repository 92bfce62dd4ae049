"""What is a LoRA adapter, and where an engine finds it."""

from pathlib import Path
from typing import Any

import pytest

from services.serving.adapters import adapters_folder, check, install, installed, uninstall
from services.serving.application import EngineSpec, serve_application
from services.serving.engine_plugin import adapter_path
from services.serving.errors import AdapterInvalid
from tests.fakes.adapter import LAYER, write_adapter

ENGINE, ADAPTER = "assistant-v1-aaaa", "assistant-v4-7c1f"


def test_an_adapter_as_peft_saves_it_is_one(tmp_path: Path) -> None:
    embedding = {f"{LAYER}.lora_A.weight": (4, 8), "base_model.model.model.embed_tokens.lora_embedding_B": (8, 4)}
    check(write_adapter(tmp_path / "layer", rank=8), max_rank=8)
    check(write_adapter(tmp_path / "embedding", tensors=embedding), max_rank=8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "says peft_type 'IA3'"),
        ({"rank": 16}, r"rank 16 is above spec\.engine\.lora\.maxRank, 8"),
        ({"rank_pattern": {"q_proj": 32}}, "rank 32 is above"),
        ({"r": "four"}, "has no rank"),
        ({"r": True}, "has no rank"),
        ({"rank_pattern": [4]}, "has no rank"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "more than low-rank matrices"),
        ({"modules_to_save": ["lm_head"]}, "more than low-rank matrices"),
        ({"tensors": {}}, "holds no tensors"),
        ({"tensors": {"model.embed_tokens.weight": (8, 8)}}, "holds model.embed_tokens.weight"),
        ({"tensors": {f"{LAYER}.lora_A.weight": (9, 8)}}, r"has the shape \[9, 8\]"),
        ({"tensors": {f"{LAYER}.lora_B.weight": (8, 9)}}, r"has the shape \[8, 9\]"),
        ({"tensors": {f"{LAYER}.lora_A.weight": (8,)}}, r"has the shape \[8\]"),
    ],
)
def test_what_no_engine_could_load_is_refused_with_what_is_wrong(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(AdapterInvalid, match=message):
        check(write_adapter(tmp_path, **fields), max_rank=8)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("adapter_config.json", None, r"has no adapter_config\.json"),
        ("adapter_model.safetensors", None, r"has no adapter_model\.safetensors"),
        ("adapter_config.json", b"{", "cannot be read"),
        ("adapter_config.json", b"[]", "no JSON object"),
        ("adapter_model.safetensors", b"", "no safetensors file"),
        ("adapter_model.safetensors", b"\x02" + 7 * b"\0" + b"[]", "no safetensors file"),
        ("adapter_model.safetensors", b"\x0a" + 7 * b"\0" + b'{"a.lora_A"', "no safetensors file"),
        ("adapter_model.safetensors", 16 * b"\xff", "no safetensors file: a header of"),
        ("adapter_model.safetensors", b"\x08" + 7 * b"\0" + b'{"a": 1}', "no safetensors file"),
    ],
)
def test_files_that_are_missing_or_broken(tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    write_adapter(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(AdapterInvalid, match=message):
        check(tmp_path, max_rank=8)


def test_an_installed_adapter_is_two_files_that_do_not_change(tmp_path: Path) -> None:
    source, target = write_adapter(tmp_path / "source"), adapters_folder(tmp_path, "assistant", ENGINE) / ADAPTER
    (source / "adapter_model.bin").write_bytes(b"pickle")
    install(source, target)
    before = (target / "adapter_config.json").read_text()
    write_adapter(source, rank=8)
    install(source, target)
    assert {path.name for path in target.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert (target / "adapter_config.json").read_text() == before
    assert installed(tmp_path, "assistant") == {ADAPTER: ENGINE}
    assert installed(tmp_path, "other") == {}


def test_an_install_that_breaks_off_leaves_nothing_to_serve(tmp_path: Path) -> None:
    source, target = write_adapter(tmp_path / "source"), adapters_folder(tmp_path, "assistant", ENGINE) / ADAPTER
    (source / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        install(source, target)
    assert installed(tmp_path, "assistant") == {}
    assert list(target.parent.iterdir()) == []


def test_the_last_adapter_takes_its_engines_folder_with_it(tmp_path: Path) -> None:
    folder = adapters_folder(tmp_path, "assistant", ENGINE)
    for name in (ADAPTER, "assistant-v5-0000"):
        install(write_adapter(tmp_path / "source"), folder / name)
    uninstall(folder / ADAPTER)
    uninstall(folder / ADAPTER)
    assert installed(tmp_path, "assistant") == {"assistant-v5-0000": ENGINE}
    uninstall(folder / "assistant-v5-0000")
    assert not folder.exists()


def test_an_engine_is_told_of_its_own_folder_only_where_it_has_room_for_adapters() -> None:
    def llm_config(**arguments: Any) -> dict[str, Any]:
        spec = EngineSpec(arguments=arguments, resources={"CPU": 1})
        application = serve_application(ENGINE, "assistant", "/models/digest", spec)
        return dict(application["args"]["llm_configs"][0])

    folder = str(adapters_folder("/models", "assistant", ENGINE))
    assert llm_config(enable_lora=True)["runtime_env"] == {"env_vars": {"UNDERSTUDY_ADAPTERS": folder}}
    assert "runtime_env" not in llm_config()


def test_a_request_names_an_adapter_and_never_a_path(tmp_path: Path) -> None:
    folder = adapters_folder(tmp_path, "assistant", ENGINE)
    install(write_adapter(tmp_path / "source"), folder / ADAPTER)
    assert adapter_path(str(folder), ADAPTER) == str(folder / ADAPTER)
    (folder / "link").symlink_to(tmp_path / "source")
    (folder / "empty").mkdir()
    sources = [
        str(tmp_path / "source"),
        "../../../source",
        "link",
        "empty",
        ".",
        "..",
        "",
        f"{ADAPTER}/",
        f"{ADAPTER}\n",
    ]
    assert [adapter_path(str(folder), name) for name in (*sources, "assistant-v9-0000", "A" * 5000)] == [None] * 11
    assert adapter_path(str(tmp_path / "nowhere"), ADAPTER) is None
