"""Growing to a target: head_dim, groups, vocabulary, positions, lists of layers, and all at once."""

from __future__ import annotations

import json

import pico
import pytest
import torch
import transformers
from command_line import meristem
from test_stream import gap, with_eps

import meristem as ms
from meristem.algebra import Layout
from meristem.anatomy.streamed import weights_of
from meristem.checkpoints import open_streamed
from meristem.growth import Growth
from meristem.growth.like.config import like, rows
from meristem.growth.structure.regrouping import regrouped
from meristem.growth.structure.vocabulary import more_positions
from meristem.growth.tensors.apply import grow_tensor
from meristem.growth.widths.head_dim import head_dim_map


@pytest.mark.parametrize("family, options", [
    ("llama", {"head_dim": 16}), ("llama", {"head_dim": 24}), ("qwen3", {"head_dim": 16}), ("olmo2", {"head_dim": 16}),
    ("gemma3", {"head_dim": 24}), ("t5", {"head_dim": 12}), ("phi3", {"head_dim": 16, "hidden_size": 64, "num_attention_heads": 4}),
    ("gpt2", {"hidden_size": 40, "num_attention_heads": 4}), ("opt", {"hidden_size": 40, "num_attention_heads": 4}),
    ("gpt_neox", {"hidden_size": 64, "num_attention_heads": 4}), ("vit", {"hidden_size": 40, "num_attention_heads": 4}),
])  # fmt: skip
@pytest.mark.parametrize("method", [ms.LEMON, ms.ZeroPadding])
def test_heads_grow_inside(family, options, method):
    small = with_eps(family)
    growth = Growth.of(small, method(**options))
    assert growth.plans[0].preserves_function
    assert gap(small, growth.model) <= 1e-5


def test_interleaved_pairs_stay_pairs():
    config = transformers.CohereConfig(
        vocab_size=67, hidden_size=32, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    small = transformers.CohereForCausalLM(config).eval()
    pico.randomise(small)
    anatomy = ms.Anatomy.of(small)
    sizes = {**anatomy.sizes, "head_dim": 16, "hidden": 64}
    places = head_dim_map(anatomy, "head_dim", sizes).write.coefficient.nonzero().flatten()
    assert places.tolist() == [0, 1, 4, 5, 8, 9, 12, 13]
    halves = head_dim_map(
        ms.Anatomy.of(pico.build("llama")), "head_dim", {**ms.Anatomy.of(pico.build("llama")).sizes, "head_dim": 16}
    )
    assert halves.write.coefficient.nonzero().flatten().tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    assert gap(small, ms.grow(small, ms.LEMON(hidden_size=64, num_attention_heads=4, noise=0.0))) <= 1e-5


def test_llama_3_scaling_keeps_its_frequencies_and_yarn_does_not():
    llama3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 32}  # fmt: skip
    small = pico.build("llama", rope_parameters=llama3)
    assert gap(small, ms.grow(small, ms.LEMON(head_dim=16))) <= 1e-5
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 512}
    with pytest.raises(
        ms.MeristemError, match=r"with head_dim 64, llama would compute another function: .* \(yarn\); keep it at 32"
    ):
        ms.grow(pico.build("llama", rope_parameters=yarn, head_dim=32), ms.LEMON(head_dim=64))
    with pytest.raises(
        ms.MeristemError, match=r"head_dim 12 does not hold the frequencies of head_dim 8.* 16 for unscaled ones"
    ):
        ms.grow(pico.build("llama"), ms.LEMON(head_dim=12))


@pytest.mark.parametrize("scaling", ["dynamic", "longrope"])
def test_head_dim_stays_where_rotary_tables_change_with_the_length_of_a_text(scaling):
    """The tables of short texts hold every frequency, those of long ones do not: 150 tokens of 64 were wrong by 1e-2."""
    own = {"dynamic": {"factor": 4.0}, "longrope": {
        "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.2, 2.4, 2.6], "original_max_position_embeddings": 64,
    }}[scaling]  # fmt: skip
    small = pico.build("llama", rope_parameters={"rope_type": scaling, "rope_theta": 10000.0, **own})
    for grow, method in ((ms.grow, ms.LEMON(head_dim=16)), (ms.shrink, ms.WeightSelection(head_dim=4))):
        with pytest.raises(ms.MeristemError, match=rf"depends on head_dim \({scaling}\); keep it at 8"):
            grow(small, method)
    assert gap(small, ms.grow(small, ms.LEMON(hidden_size=64, num_attention_heads=8))) <= 1e-5


def test_new_units_of_a_head_can_learn():
    """Keys and values are free, queries and what reads values are silent: gradients reach all of them."""
    small = pico.build("gpt2")
    big = ms.grow(small, ms.LEMON(hidden_size=64, num_attention_heads=4, noise=0.0))
    weight = big.transformer.h[0].attn.c_attn.weight.detach().view(64, 3, 4, 16)
    assert not weight[:, 0, :, 8:].any()
    assert weight[:, 1, :, 8:].any()
    assert weight[:, 2, :, 8:].any()
    tokens = torch.arange(3, 23)[None]
    big(input_ids=tokens, labels=tokens).loss.backward()
    assert big.transformer.h[0].attn.c_attn.weight.grad.view(64, 3, 4, 16)[:32, 0, :, 8:].abs().max() > 0
    assert big.transformer.h[0].attn.c_proj.weight.grad.view(4, 16, 64)[:, 8:].abs().max() > 0


def test_a_sum_spreads_over_what_follows_it():
    layout = Layout.parse("kv_heads (group + 2) head_dim")
    assert str(layout.spread()) == "kv_heads (group head_dim + 2 head_dim)"
    assert str(Layout.parse("(a + 2) b + 3 c").spread()) == "a b + 2 b + 3 c"


@pytest.mark.parametrize("family, changes, heads", [
    ("gemma3", {"num_key_value_heads": 1}, (8, 4)), ("llama", {}, (6, 6)), ("qwen3", {}, (8, 8)), ("phi3", {}, (6, 6)),
    ("olmo2", {}, (8, 8)),
])  # fmt: skip
def test_heads_move_to_other_groups(family, changes, heads):
    small = with_eps(family, **changes)
    options = dict(zip(("num_attention_heads", "num_key_value_heads"), heads, strict=True))
    options |= {"hidden_size": 8 * heads[0]} if family in ("phi3", "llama") else {}
    growth = Growth.of(small, ms.LEMON(**options))
    assert growth.plans[0].preserves_function
    assert gap(small, growth.model) <= 1e-5
    assert (growth.model.config.num_attention_heads, growth.model.config.num_key_value_heads) == heads


def test_each_query_head_stays_with_a_copy_of_its_key_value_head():
    kv, heads = regrouped(old_kv=2, old_group=4, new_kv=6, new_group=2)
    assert kv.write.index.tolist() == [0, 1, 0, 1, 0, 1]
    assert [h // 4 for h in heads.write.index.tolist()[::2]] == kv.write.index.tolist()
    assert set(heads.write.index.tolist()) == set(range(8))
    assert heads.preservation_error() < 1e-12


@pytest.mark.parametrize("family, options", [
    ("llama", {"vocab_size": 80}), ("gpt2", {"vocab_size": 80, "max_position_embeddings": 96}),
    ("opt", {"pad_to_multiple_of": 16, "max_position_embeddings": 96}), ("bart", {"vocab_size": 70, "sizes": {"encoder_ffn": 60}}),
    ("t5", {"vocab_size": 80}),
])  # fmt: skip
def test_vocabulary_and_positions(family, options):
    small = pico.build(family)
    growth = Growth.of(small, ms.LEMON(**options))
    assert growth.certificate.holds
    assert growth.model.config.vocab_size == options.get("vocab_size", 80)
    old, new = small.get_input_embeddings().weight, growth.model.get_input_embeddings().weight
    torch.testing.assert_close(new[:67], old)
    torch.testing.assert_close(new[67], old.mean(0))
    if "max_position_embeddings" in options:
        name = next(n for n in small.state_dict() if "wpe" in n or "embed_positions" in n)
        torch.testing.assert_close(growth.model.state_dict()[name][-1], small.state_dict()[name][-1])


def test_interpolated_positions_lie_between_the_old_ones():
    assert torch.allclose(
        more_positions(3, 5, interpolate=True).write.matrix(),
        torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]], dtype=torch.float64),
    )
    growth = Growth.of(pico.build("gpt2"), ms.LEMON(max_position_embeddings=96, positions="interpolate"))
    assert not growth.plans[0].preserves_function


def order(method, family="llama", **changes) -> dict[str, list[int]]:
    plan = method.plan(*reversed((small := pico.build(family, **changes), ms.Anatomy.of(small))))
    return {axis: [layer.sources[0][0] for layer in layers] for axis, layers in plan.layers.items()}


def test_layers_by_a_list():
    assert order(ms.Stacking(layers="0-2,1-3"), num_hidden_layers=4) == {"layers": [0, 1, 2, 1, 2, 3]}
    assert order(ms.Stacking(layers=[0, 0, 1])) == {"layers": [0, 0, 1]}
    assert order(ms.Stacking(decoder_layers="0-1,0-1"), "bart") == {"decoder_layers": [0, 1, 0, 1]}
    assert order(ms.Stacking(num_hidden_layers=5)) == {"layers": [0, 1, 0, 1, 0]}
    assert order(ms.MIDAS(num_hidden_layers=5), num_hidden_layers=4) == {"layers": [0, 1, 1, 2, 3]}
    assert order(ms.GradualStacking(num_hidden_layers=3)) == {"layers": [0, 1, 1]}
    plan = ms.IdentityBlocks(num_hidden_layers=10).plan(
        ms.Anatomy.of(small := pico.build("llama", num_hidden_layers=8)), small
    )
    assert [place for place, layer in enumerate(plan.layers["layers"]) if layer.silent] == [4, 9]


@pytest.mark.parametrize("method, message", [
    (ms.Stacking(layers="0-40"), "asked for layer 40, the network has 2 layers, 0-1"),
    (ms.Stacking(layers="first"), "numbers and ranges such as 0-23,8-31; got 'first'"),
    (ms.Stacking(decoder_layers="0"), "llama has no decoder_layers; its lists of blocks: layers"),
    (ms.LEMON(head_dim=7), "head_dim of 7, the network has 8"),
    (ms.LEMON(max_position_embeddings=128), "has no learned positions"),
    (ms.LEMON(sizes={"wings": 2}), "no axis 'wings' that can change; it has hidden"),
    (ms.LEMON(depths={"wings": 2}), "no list of blocks 'wings'; it has layers"),
    (ms.LEMON(pad_to_multiple_of=0), "pad_to_multiple_of must be a positive whole number, got 0"),
    (ms.LEMON(hidden_size=45), "hidden_size=44 or 48 would work"),
])  # fmt: skip
def test_refused(method, message):
    with pytest.raises(ms.MeristemError, match=message):
        ms.grow(pico.build("llama"), method)


TARGETS = {
    "llama": {"hidden_size": 80, "intermediate_size": 96, "num_attention_heads": 10, "num_key_value_heads": 5, "num_hidden_layers": 3,
              "vocab_size": 80},
    "qwen3": {"hidden_size": 48, "intermediate_size": 60, "num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 3},
    "gemma3": {"hidden_size": 48, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 16, "num_hidden_layers": 3},
    "gpt2": {"n_embd": 48, "n_head": 6, "n_layer": 3},
    "opt": {"hidden_size": 80, "word_embed_proj_dim": 80, "num_attention_heads": 8, "num_hidden_layers": 3},
    "t5": {"d_model": 48, "num_heads": 8, "d_kv": 12, "num_layers": 3, "num_decoder_layers": 4, "d_ff": 60},
    "vit": {"hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 3, "intermediate_size": 60},
}  # fmt: skip


@pytest.mark.parametrize("family", TARGETS)
def test_a_target_is_reached_exactly(family, tmp_path):
    small, config = with_eps(family), pico.build(family, **TARGETS[family]).config
    growth = Growth.of(small, like=config)
    assert growth.certificate.holds
    growth.model.save_pretrained(tmp_path)
    again = type(small).from_pretrained(tmp_path).eval()
    assert gap(small, again) <= 1e-5
    expected = {name: tensor.shape for name, tensor in type(small)(config).state_dict().items()}
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == expected
    for name, value in pico.build(family, **TARGETS[family]).config.to_dict().items():
        if name in TARGETS[family]:
            assert getattr(again.config, name) == value
    assert all(row.obstacle == "" for row in rows(growth.plans[0], small))


def test_mamba_reaches_its_next_size():
    def config(hidden: int, rank: int, layers: int):
        return transformers.MambaConfig(
            vocab_size=67, hidden_size=hidden, num_hidden_layers=layers, state_size=8, time_step_rank=rank, pad_token_id=0,
            bos_token_id=0, eos_token_id=0, layer_norm_epsilon=1e-2,
        )  # fmt: skip

    small = transformers.MambaForCausalLM(config(32, 2, 2)).eval()
    for target in (Growth.of(small, like=config(48, 3, 3)), Growth.of(small, ms.LEMON(hidden_size=48))):
        assert target.certificate.holds
        assert (target.model.config.intermediate_size, target.model.config.time_step_rank) == (96, 3)


def test_other_fields_are_the_sources_or_the_targets():
    small = pico.build("llama")
    config = pico.build(
        "llama", hidden_size=48, num_attention_heads=6, num_key_value_heads=3, head_dim=8, rms_norm_eps=1e-3
    ).config
    kept, taken = like(small, config), like(small, config, take_target_fields=True)
    assert kept.fields == taken.fields == {"rms_norm_eps": (1e-6, 1e-3)}
    assert Growth.of(small, kept.methods).model.config.rms_norm_eps == 1e-6
    with pytest.warns(
        UserWarning, match="config entries that are taken from the target are the likely cause: .*rms_norm_eps"
    ):
        growth = Growth.of(small, taken.methods)
    assert growth.model.config.rms_norm_eps == 1e-3
    assert not growth.plans[0].preserves_function
    assert growth.certificate.relative_error > 1e-3


@pytest.mark.parametrize("target, message", [
    (("gpt2", {}), "the target is a gpt2, the network a llama; a llama of any larger size, or a mixtral, would work"),
    (("llama", {"num_hidden_layers": 1, "intermediate_size": 22}),
     "smaller on some axes: ffn 44 -> 22, layers 2 -> 1. The nearest target that works has ffn 44, layers 2"),
    (("llama", {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}), "heads 4 -> 2"),
    (("llama", {"vocab_size": 90, "bos_token_id": 5}), "another tokenizer .vocab_size 67 -> 90, bos_token_id 1 -> 5"),
    (("llama", {"attention_bias": True}), "no growth of this network has the target's tensors.*attention_bias"),
])  # fmt: skip
def test_bad_targets(target, message):
    family, changes = target
    with pytest.raises(ms.MeristemError, match=message):
        ms.grow(pico.build("llama"), like=pico.build(family, **changes).config)


def entries(**changes) -> str:
    return json.dumps({**pico.build("llama").config.to_dict(), **changes})


@pytest.mark.parametrize("text, message", [
    ("", "not valid JSON: Expecting value: line 1 column 1"),
    ("[1, 2]", "this config has no model_type"),
    ('{"hidden_size": 64}', "this config has no model_type"),
    ('{"model_type": "lama"}', "no model_type 'lama'; did you mean 'llama'"),
    (entries(hidden_size="64"), "transformers does not accept this llama config: .*expected int, got str"),
    (entries(hidden_size=-64), "the target's hidden_size is -64; a positive whole number would work"),
    (entries(num_hidden_layers=0), "the target's num_hidden_layers is 0"),
    (entries(num_attention_heads=5), "32. is not a multiple of the number of attention heads .5"),
    (entries(hidden_size=10**9), "too large"),
    (entries(rope_parameters={"rope_type": "spiral"}), "builds no network: KeyError: 'spiral'"),
    (entries(), "the network's own sizes, so there is nothing to grow"),
    (entries(rms_norm_eps=1e-3), "nothing to grow; its config differs in rms_norm_eps"),
    (entries(num_key_value_heads=1, num_attention_heads=8), "smaller on some axes: kv_heads 2 -> 1"),
    (entries(head_dim=4), "smaller on some axes: head_dim 8 -> 4"),
    (entries(head_dim=12), "does not hold the frequencies of head_dim 8.*16 for unscaled ones"),
])  # fmt: skip
def test_bad_target_files(text, message, tmp_path):
    (tmp_path / "target.json").write_text(text)
    with pytest.raises(ms.MeristemError, match=message) as caught:
        ms.grow(pico.build("llama"), like=tmp_path / "target.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target, message", [
    (5, "got a int"),
    ("/nonexistent/x", "no such directory here"), ("nosuch.json", "^nosuch.json: no such file; a target is"),
    ({"hidden_size": 64}, "this config has no model_type"),
])  # fmt: skip
def test_what_names_no_config(target, message, tmp_path):
    with pytest.raises(ms.MeristemError, match=message):
        ms.grow(pico.build("llama"), like=target)
    with pytest.raises(ms.MeristemError, match=r"no config\.json in this directory"):
        ms.grow(pico.build("llama"), like=tmp_path)


def test_networks_and_mappings_name_their_config():
    wider = pico.build("llama", hidden_size=48, num_attention_heads=6, num_key_value_heads=3, head_dim=8)
    for target in (wider, wider.config.to_dict()):
        assert ms.grow(pico.build("llama"), like=target).config.hidden_size == 48


@pytest.mark.parametrize("family, changes, message", [
    ("opt", {"word_embed_proj_dim": 16, "do_layer_norm_before": False}, "config differs in do_layer_norm_before, word_embed_proj_dim"),
    ("vit", {"patch_size": 2}, "config differs in patch_size"),
    ("vit", {"num_labels": 9}, "config differs in id2label"),
    ("mixtral", {"num_local_experts": 2}, "experts 4 -> 2"),
])  # fmt: skip
def test_targets_of_other_kinds(family, changes, message):
    with pytest.raises(ms.MeristemError, match=message):
        ms.grow(pico.build(family), like=pico.build(family, **changes).config)


def test_options_of_like():
    with pytest.raises(ms.MeristemError, match="like= takes no width; its options are noise, norms, seed"):
        like(pico.build("llama"), pico.build("llama", intermediate_size=88).config, width=2)


def test_a_mixture_grows_to_a_wider_one():
    small = pico.build("mixtral")
    config = pico.build(
        "mixtral", intermediate_size=88, hidden_size=48, num_attention_heads=6, num_key_value_heads=3, head_dim=8
    ).config
    growth = Growth.of(small, like=config)
    assert growth.certificate.holds
    assert gap(small, growth.model) <= 1e-5
    assert (growth.model.config.intermediate_size, growth.model.config.num_local_experts) == (88, 4)


def streamed_equals(small, growth, tmp_path) -> bool:
    """Whether the growth that is streamed from disk to disk makes the same tensors."""
    small.save_pretrained(tmp_path / "small")
    streamed = ms.grow(open_streamed(tmp_path / "small"), like=growth.model.config, verify=False)
    made = weights_of(streamed)
    return all(torch.equal(made[name], tensor) for name, tensor in growth.model.state_dict().items())


@pytest.mark.parametrize("family, changes", [
    ("llama", {"head_dim": 16, "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 80, "num_hidden_layers": 3}),
    ("qwen3", {"hidden_size": 48, "head_dim": 16, "num_attention_heads": 8, "num_key_value_heads": 4}),
    ("bert", {"num_hidden_layers": 5}),
])  # fmt: skip
def test_new_axes_stream(family, changes, tmp_path):
    small = pico.build(family)
    growth = Growth.of(small, like=pico.build(family, **changes).config)
    assert growth.certificate.holds
    assert streamed_equals(small, growth, tmp_path)


def test_a_tied_head_is_untied_where_the_target_is():
    small = pico.build("llama", tie_word_embeddings=True)
    growth = Growth.of(
        small, like=pico.build("llama", hidden_size=48, num_attention_heads=6, num_key_value_heads=3, head_dim=8).config
    )
    assert growth.model.config.tie_word_embeddings is False
    assert gap(small, growth.model) <= 1e-5


def test_untying_alone_is_a_growth():
    small = pico.build("llama", tie_word_embeddings=True)
    growth = Growth.of(small, like=pico.build("llama", tie_word_embeddings=False).config)
    assert growth.certificate.holds
    assert growth.model.config.tie_word_embeddings is False
    assert torch.equal(growth.model.lm_head.weight, small.lm_head.weight)


def test_the_chain_rule_holds_for_new_axes():
    """f'(W'(W)) = f(W), so the large network's gradients, pulled back by the maps, are the small one's: head_dim and groups."""
    small = pico.build("llama").double()
    tokens = torch.arange(3, 23)[None]
    small(input_ids=tokens, labels=tokens).loss.backward()
    for method in (ms.LEMON(head_dim=16, noise=0.0), ms.LEMON(num_attention_heads=8, num_key_value_heads=8, noise=0.0)):
        growth = Growth.of(small, method)
        growth.model(input_ids=tokens, labels=tokens).loss.backward()
        for name, plan in growth.plans[0].tensors.items():
            pulled = growth.model.get_parameter(name).grad * plan.scale
            for dimension in range(pulled.dim()):
                unit_map = plan.unit_map(dimension)
                pulled = pulled if unit_map is None else unit_map.transposed_apply(pulled, dimension)
            torch.testing.assert_close(pulled, small.get_parameter(name).grad, rtol=1e-6, atol=1e-9, msg=name)
        state = {name: p.grad for name, p in small.named_parameters()}
        for name, plan in growth.plans[0].tensors.items():
            assert grow_tensor(plan, state.__getitem__, "gradient").shape == growth.model.get_parameter(name).shape


def test_the_command_line(tmp_path):
    small, target = tmp_path / "small", tmp_path / "target.json"
    pico.build("llama").save_pretrained(small)
    config = pico.build(
        "llama", hidden_size=48, num_attention_heads=6, num_key_value_heads=3, head_dim=8, rms_norm_eps=1e-3
    ).config
    target.write_text(json.dumps(config.to_dict()))
    dry = meristem("grow", small, tmp_path / "big", "--like", target, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "padded, the stream scaled" in dry.stdout
    assert "rms_norm_eps" in dry.stdout
    assert not (tmp_path / "big").exists()
    done = meristem("grow", small, tmp_path / "big", "--like", target)
    assert done.returncode == 0, done.stderr
    grown = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "big")
    assert (grown.config.hidden_size, grown.config.rms_norm_eps) == (48, 1e-6)
    refused = meristem("grow", small, tmp_path / "other", "--like", target, "--width", 2)
    assert refused.returncode == 2
    assert "--like takes every size from its target; leave out --width" in refused.stderr
    priced = meristem("plan", small, "--like", target, "--tokens", "10M")
    assert priced.returncode == 0, priced.stderr
    assert "46,512" not in priced.stdout or "large" in priced.stdout


def test_bad_inputs_on_the_command_line(tmp_path):
    """One sentence each, naming what would work; nothing is written."""
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 512}
    sources = {"llama": {}, "yarn": {"rope_parameters": yarn, "head_dim": 32}, "deep": {"num_hidden_layers": 32}}
    for name, changes in sources.items():
        pico.build("llama", **changes).save_pretrained(tmp_path / name)
    targets = {
        "family": pico.build("gpt2").config,
        "tokenizer": pico.build("llama", vocab_size=90, bos_token_id=5).config,
        "heads": pico.build("llama", num_attention_heads=2, num_key_value_heads=2, head_dim=8).config,
        "yarn64": pico.build("llama", rope_parameters=yarn, head_dim=64).config,
    }
    for name, config in targets.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(config.to_dict()))
    cases = [
        (("llama", "--like", tmp_path / "family.json"), "a llama of any larger size, or a mixtral, would work"),
        (("llama", "--like", tmp_path / "tokenizer.json"), "a target with vocab_size=67 would work"),
        (("llama", "--like", tmp_path / "heads.json"), "heads 4 -> 2. The nearest target that works has heads 4"),
        (("yarn", "--like", tmp_path / "yarn64.json"), "depends on head_dim (yarn); keep it at 32"),
        (("deep", "--method", "stacking", "--layers", "0-40"), "the network has 32 layers, 0-31"),
    ]
    for (source, *options), message in cases:
        done = meristem("grow", tmp_path / source, tmp_path / "out", *options)
        assert done.returncode == 2
        assert message in done.stderr
        assert len([line for line in done.stderr.splitlines() if "planning" not in line]) == 1
        assert not (tmp_path / "out").exists()


def test_verify_compares_the_old_tokens():
    small = pico.build("llama")
    big = ms.grow(small, ms.LEMON(vocab_size=80))
    old = small.config.vocab_size
    assert ms.verify(small, big).holds
    with torch.no_grad():
        big.lm_head.weight[old:] += 1.0
        assert ms.verify(small, big).holds
        big.lm_head.weight[old - 1] *= 2.0
    changed = ms.verify(small, big)
    assert changed.relative_error > 1e-2
    with pytest.raises(ms.MeristemError, match="cannot be compared: logits has"):
        ms.verify(big, small, {"input_ids": torch.randint(old, (2, 8))})
