"""The catalog: closed files, names, counts from the architecture, image rules against the processors themselves."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import fovea
from models.catalog import load_catalog
from models.catalog.count import PARTS, build, count
from models.catalog.load import FOLDER, read_family
from models.catalog.load import load_catalog as load_folder
from models.catalog.schema import Family, Variant
from models.support.errors import CheckFailed, UsageError

CATALOG = load_catalog()
VARIANTS = [pytest.param(f, v, id=v.name) for f, v in CATALOG.variants()]
PICTURED = [pytest.param(f, v, id=v.name) for f, v in CATALOG.variants() if v.image is not None]
FAMILIES = [pytest.param(f, id=f.family) for f in CATALOG.families]
SIZES = [(64, 64), (336, 336), (512, 512), (640, 480), (1024, 1024), (1920, 1080), (333, 1999), (3000, 100)]


def test_every_family_asked_for_is_there() -> None:
    names = {v.name for _, v in CATALOG.variants()}
    sizes = {f"paligemma2-{size}-{side}" for size in ("3b", "10b", "28b") for side in (224, 448, 896)}
    sizes |= {f"qwen2.5-vl-{size}" for size in ("3b", "7b", "32b", "72b")} | {"llama-4-scout", "llama-4-maverick"}
    sizes |= {"smolvlm-256m", "smolvlm-500m", "smolvlm-2.2b", "phi-4-multimodal", "qwen3-vl-8b", "gemma-3-27b"}
    sizes |= {"whisper-large-v3", "colpali-v1.3", "colqwen2-v1.0", "shieldgemma-2-4b", "llama-guard-4-12b"}
    sizes |= {"qwen2-5-vl-embedded", "paligemma-embedded", "llava-1.5-7b", "llava-next-34b", "llava-onevision-7b"}
    assert sizes <= names


@pytest.mark.parametrize(("family", "variant"), VARIANTS)
def test_parameters_are_those_of_the_architecture(family: Family, variant: Variant) -> None:
    assert count(family, variant) == {part: getattr(variant.parameters, part) for part in PARTS}


@pytest.mark.parametrize(
    ("name", "published"),
    # totals of the checkpoints themselves, as public records of them give (safetensors metadata, loaded models)
    [
        ("qwen2.5-vl-7b", 8292166656),
        ("smolvlm-256m", 256484928),
        ("llama-4-scout", 108641793536),
        ("llama-4-maverick", 401583781376),
        ("gemma-3-27b", 27432406640),
        ("qwen3-vl-235b-a22b", 235670022896),
        ("whisper-large-v3-turbo", 808878080),
        ("llama-guard-4-12b", 12001097216),
    ],
)
def test_totals_equal_the_published_ones(name: str, published: int) -> None:
    assert CATALOG.variant(name).parameters.total == published


@pytest.mark.parametrize(("family", "variant"), VARIANTS)
def test_decoder_shape_is_that_of_the_configuration(family: Family, variant: Variant) -> None:
    model = build(variant)
    config = model.config
    config = getattr(config, "vlm_config", config)
    d = variant.decoder
    if family.family == "whisper":
        stated = (config.decoder_layers, config.decoder_attention_heads, config.d_model, config.decoder_ffn_dim)
        assert (d.layers, d.heads, d.hidden, d.intermediate) == stated
        assert (d.kv_heads, d.head_dim, d.cross_tokens) == (d.heads, d.hidden // d.heads, config.max_source_positions)
        return
    text = config.get_text_config(decoder=True)
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    assert (d.layers, d.heads, d.kv_heads, d.head_dim, d.hidden) == (
        text.num_hidden_layers,
        text.num_attention_heads,
        text.num_key_value_heads,
        head_dim,
        text.hidden_size,
    )
    assert d.vocab == text.vocab_size
    # embedded checkpoints set every layer to full attention in their own configuration
    if family.role != "embedded":
        types = getattr(text, "layer_types", None) or []
        assert d.window_layers == sum(t != "full_attention" for t in types)


@pytest.mark.parametrize("family", [pytest.param(f, id=f.family) for f in CATALOG.families if f.quantize])
def test_quantization_reaches_all_language_layers_and_nothing_else(family: Family) -> None:
    from torch import nn

    assert family.quantize is not None
    language = [re.compile(p) for p in family.parts.language]
    others = [re.compile(p) for part in ("vision", "projector", "audio") for p in getattr(family.parts, part)]
    for name, module in build(family.variants[0]).named_modules():
        if not isinstance(module, nn.Linear):
            continue
        chosen = any(re.search(p, name) for p in family.quantize.targets)
        chosen = chosen and not any(re.search(p, name) for p in family.quantize.ignore)
        weight = f"{name}.weight"
        spoken = any(r.search(weight) for r in language) and not any(r.search(weight) for r in others)
        wanted = spoken and "lm_head" not in name and not name.endswith((".router", ".mlp.gate"))
        assert chosen == wanted, name


@pytest.mark.parametrize("family", [pytest.param(f, id=f.family) for f in CATALOG.families if f.lora])
def test_lora_targets_exist(family: Family) -> None:
    assert family.lora is not None
    ends = {name.rsplit(".", 1)[-1] for name, _ in build(family.variants[0]).named_modules()}
    assert set(family.lora.targets) <= ends


def test_a_parameter_of_no_part_is_found() -> None:
    family = CATALOG.find("qwen2.5-vl")[0]
    parts = family.parts.model_copy(update={"projector": []})
    with pytest.raises(CheckFailed, match="merger"):
        count(family.model_copy(update={"parts": parts}), family.variants[0])


# ---- image rules


def _llava_processor(kind: str, rule: Any) -> Any:
    """The class's own arithmetic without a tokenizer or weights."""
    import transformers

    cls = getattr(transformers, f"{kind}Processor")
    pinpoints = [[r * rule.side, c * rule.side] for r, c in rule.grids]
    stand = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=pinpoints),
        patch_size=rule.side // rule.patches if kind == "LlavaNext" else 14,
        num_additional_image_tokens=0,
        num_image_tokens=rule.patches**2,
        vision_aspect_ratio="anyres_max_9",
    )
    stand._get_unpadded_features = lambda *args: cls._get_unpadded_features(stand, *args)
    return lambda width, height: cls._get_number_of_features(stand, height, width, rule.side, rule.side)


@pytest.mark.parametrize(
    ("kind", "name"), [("LlavaNext", "llava-next-mistral-7b"), ("LlavaOnevision", "llava-onevision-7b")]
)
@given(width=st.integers(20, 4000), height=st.integers(20, 4000))
@settings(max_examples=60, deadline=None)
def test_any_resolution_rule_is_the_processors(kind: str, name: str, width: int, height: int) -> None:
    rule = CATALOG.variant(name).image
    assert rule is not None
    assert rule.tokens(width, height) == _llava_processor(kind, rule)(width, height)


@pytest.mark.parametrize("name", ["smolvlm-256m", "smolvlm-2.2b"])
@given(width=st.integers(8, 4000), height=st.integers(8, 4000))
@settings(max_examples=60, deadline=None)
def test_split_rule_is_the_processors(name: str, width: int, height: int) -> None:
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    rule = CATALOG.variant(name).image
    assert rule is not None and rule.rule == "split"
    size = {"size": {"longest_edge": rule.longest_edge}, "max_image_size": {"longest_edge": rule.tile}}
    processor = Idefics3ImageProcessorPil(**size)
    _, rows, columns = processor.get_number_of_image_patches(height, width, size)
    # processing_idefics3.py: each row is its tiles with two markers and a newline, then the whole view with three
    wanted = rule.per_tile + 3 + rows * ((rule.per_tile + 2) * columns + 1)
    assert rule.tokens(width, height) == wanted


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_canvas_rule_is_the_processors(width: int, height: int) -> None:
    torch = pytest.importorskip("torch")
    try:
        from transformers.image_utils import SizeDict
        from transformers.models.llama4.image_processing_llama4 import find_supported_resolutions, get_best_fit
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"the processor of Llama 4 needs a torchvision that loads: {error}")
    rule = CATALOG.variant("llama-4-scout").image
    assert rule is not None and rule.rule == "canvas"
    allowed = torch.tensor(find_supported_resolutions(rule.max_tiles, SizeDict(height=rule.tile, width=rule.tile)))
    best: Any = get_best_fit((height, width), allowed)
    assert rule.grid(width, height) == (int(best[0]) // rule.tile, int(best[1]) // rule.tile)


@pytest.mark.parametrize(("family", "variant"), PICTURED)
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_every_rule_counts_every_size(family: Family, variant: Variant, width: int, height: int) -> None:
    assert variant.image is not None
    assert 1 <= variant.image.tokens(width, height) <= 20_000


# ---- names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("qwen2.5-vl-7b", "qwen2.5-vl-7b"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2.5-vl-7b"),
        ("qwen2_5_vl 7b", "qwen2.5-vl-7b"),
        ("google/gemma-3-4b-it", "gemma-3-4b"),
        ("llava-hf/llava-1.5-7b-hf", "llava-1.5-7b"),
        ("phi-4", "phi-4-multimodal"),
        ("meta-llama/Llama-Guard-4-12B", "llama-guard-4-12b"),
    ],
)
def test_names_that_people_write(text: str, name: str) -> None:
    assert CATALOG.variant(text).name == name


def test_unknown_name_offers_the_closest() -> None:
    with pytest.raises(UsageError) as error:
        CATALOG.find("qwen2.5-vl-8b")
    assert "qwen2.5-vl-7b" in str(error.value)
    with pytest.raises(UsageError, match="fovea models list"):
        CATALOG.find("zzzzzzzz")
    with pytest.raises(UsageError, match=r"qwen2\.5-vl-72b"):
        CATALOG.variant("qwen2.5-vl")


@given(st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_name_is_found_or_refused(text: str) -> None:
    try:
        family, variant = CATALOG.find(text)
    except UsageError as error:
        assert error.field == "name"
    else:
        assert variant is None or variant in family.variants


def test_hub_ids_and_commits_are_unique() -> None:
    hubs = [v.hub for _, v in CATALOG.variants() if v.hub]
    commits = [v.revision.commit for _, v in CATALOG.variants() if v.revision.commit]
    assert len(set(hubs)) == len(hubs) and len(set(commits)) == len(commits)


# ---- bad files


def _file(tmp_path: Path, change: Any) -> Path:
    data = yaml.safe_load((FOLDER / "phi_4_multimodal.yaml").read_text(encoding="utf-8"))
    change(data)
    path = tmp_path / "broken.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda d: d.update(colour="blue"), "colour"),
        (lambda d: d.pop("sources"), "sources"),
        (lambda d: d["variants"][0]["revision"].update(commit="abc"), "variants.0.revision.commit"),
        (lambda d: d["variants"][0]["revision"].update(confidence=None), "variants.0.revision"),
        (lambda d: d["variants"][0]["decoder"].update(kv_heads=7), "variants.0.decoder"),
        (lambda d: d["variants"][0]["parameters"].update(embeddings=10**15), "variants.0.parameters"),
        (lambda d: d["variants"][0].update(image={"rule": "table", "name": "nobody"}), "variants.0.image"),
        (lambda d: d["variants"][0].update(hub="no slash"), "variants.0.hub"),
        (lambda d: d["parts"].update(vision=["("]), "parts.vision"),
        (lambda d: d["variants"].append(d["variants"][0]), "file"),
    ],
)
def test_a_wrong_file_names_the_key(tmp_path: Path, change: Any, key: str) -> None:
    with pytest.raises(UsageError) as error:
        read_family(_file(tmp_path, change))
    assert error.value.field is not None and error.value.field.startswith(f"broken.yaml: {key}")


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        read_family(tmp_path / "absent.yaml")
    broken = tmp_path / "x.yaml"
    broken.write_text("a: [", encoding="utf-8")
    with pytest.raises(UsageError, match="not YAML"):
        read_family(broken)
    broken.write_text("- 1\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"x\.yaml: file"):
        read_family(broken)


def test_two_files_of_one_name(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_bytes((FOLDER / "smolvlm.yaml").read_bytes())
    with pytest.raises(UsageError, match="one name"):
        load_folder(tmp_path)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "paligemma"])
def test_embedded_entries_are_the_shipped_checkpoints(name: str) -> None:
    path = FOLDER.parent / "embedded" / name / "config.json"
    if not path.exists():
        pytest.skip(f"{path} is not trained yet")
    config = json.loads(path.read_text(encoding="utf-8"))
    values = CATALOG.variant({"qwen2_5_vl": "qwen2-5-vl-embedded"}.get(name, "paligemma-embedded")).config.values
    for part in ("text_config", "vision_config"):
        for key, value in values[part].items():
            assert config[part][key] == value, f"{part}.{key}"


# ---- commands


def test_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert fovea.main(["models", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["models"]
    assert len(listed) == len(VARIANTS)
    assert fovea.main(["models", "list", "--role", "safety"]) == 0
    out = capsys.readouterr().out
    assert "shieldgemma-2-4b" in out and "whisper" not in out
    assert fovea.main(["models", "list", "--role", "poetry"]) == 2
    capsys.readouterr()
    assert fovea.main(["models", "show", "qwen2.5-vl-7b", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [v["name"] for v in shown["variants"]] == ["qwen2.5-vl-7b"] and shown["recount_differs"] == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_show_prints_every_family(family: Family, capsys: pytest.CaptureFixture[str]) -> None:
    assert fovea.main(["models", "show", family.family]) == 0
    out = capsys.readouterr().out
    assert all(v.name in out for v in family.variants) and all(source in out for source in family.sources)


def test_recount_finds_a_wrong_count(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert fovea.main(["models", "show", "smolvlm-256m", "--recount"]) == 0
    assert "0 of 1 differ" in capsys.readouterr().out
    monkeypatch.setattr("models.catalog.count.count", lambda family, variant: dict.fromkeys(PARTS, 1))
    assert fovea.main(["models", "show", "smolvlm-256m", "--recount"]) == 1
    assert "1 of 1 differ" in capsys.readouterr().out


def test_unknown_family_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert fovea.main(["models", "show", "qwen9"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "qwen" in error.split("did you mean")[1]
