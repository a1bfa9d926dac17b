"""The model against Hugging Face's GPT-2, torch's FLOP counter, and its own table of initial scales."""
import dataclasses
import math
from itertools import product

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from config import settings
from config.settings import Config
from model import GPT, rotate
from runtime import cpu

TINY = Config(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=50, base_width=16)
KINDS = [dict(parametrization=p, tie_weights=t, bias=b)
         for p, t, b in product(("gpt2", "mup"), (True, False), (True, False))]


def name_of(kind: dict) -> str:
    return "-".join([kind["parametrization"], "tied" if kind["tie_weights"] else "untied",
                     "bias" if kind["bias"] else "nobias"])


every_kind = pytest.mark.parametrize("kind", KINDS, ids=name_of)
SWITCHED = {
    "rope-rms-swiglu-qk": dict(position="rope", norm="rms", mlp="swiglu", qk_norm=True, bias=True,
                               parametrization="completep", base_depth=1),
    "relu2-untied": dict(mlp="relu2", tie_weights=False, position="rope")}
every_switch = pytest.mark.parametrize("kind", [*KINDS, *SWITCHED.values()],
                                       ids=[*map(name_of, KINDS), *SWITCHED])
each_parametrization = pytest.mark.parametrize("parametrization", ["gpt2", "mup"])


def build(**changes) -> GPT:
    torch.manual_seed(1)
    return GPT(dataclasses.replace(TINY, **changes))


def tokens(rows: int = 3, length: int = 17, vocab: int = 50) -> torch.Tensor:
    return torch.randint(vocab, (rows, length), generator=torch.Generator().manual_seed(2))


def adamw(model: GPT, lr: float, weight_decay: float = 0.0) -> torch.optim.AdamW:
    groups = [group | dict(lr=lr * group["lr_scale"]) for group in model.optimizer_groups(weight_decay)]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95))


def step(model: GPT, optimizer, x: torch.Tensor) -> float:
    loss = model(x[:, :-1], x[:, 1:])[1]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


# ---------------------------------------------------------------- the function that it computes


@pytest.fixture(scope="module")
def hugging_face():
    """A GPT-2 with random weights, biases and gains, so large that a wrong one shows."""
    from transformers import GPT2Config, GPT2LMHeadModel
    torch.manual_seed(3)
    hf = GPT2LMHeadModel(GPT2Config(n_layer=3, n_head=4, n_embd=64, n_positions=32, vocab_size=96)).eval()
    for p in hf.parameters():
        torch.nn.init.normal_(p, mean=1.0 if p.dim() == 1 else 0.0, std=0.3)
    return hf


def copy_of(hf) -> GPT:
    """Our model with Hugging Face's weights, matched by name; their Conv1D stores matrices transposed."""
    model = GPT(Config(n_layer=3, n_head=4, n_embd=64, block_size=32, vocab_size=96, bias=True)).eval()
    theirs, ours = dict(hf.named_parameters()), dict(model.named_parameters())
    assert set(theirs) == set(ours)
    with torch.no_grad():
        for name, p in ours.items():
            matrix_of_block = p.dim() == 2 and ".h." in name
            p.copy_(theirs[name].T if matrix_of_block else theirs[name])
    return model


@torch.no_grad()
def test_logits_and_loss_equal_hugging_face(hugging_face):
    model, x = copy_of(hugging_face), tokens(4, 32, 96)
    theirs = hugging_face(input_ids=x, labels=x)             # their loss shifts the labels by one itself
    logits = model(x)[0]
    assert logits.std() > 1                                  # the comparison is not of numbers near zero
    torch.testing.assert_close(logits, theirs.logits, atol=1e-4, rtol=0)
    assert model(x[:, :-1], x[:, 1:])[1].item() == pytest.approx(theirs.loss.item(), abs=1e-4)


@every_switch
def test_loss_and_its_gradients_are_those_of_cross_entropy(kind):
    """However forward() computes it: scaled as train.py scales it, accumulated, and without gradients."""
    model, x = build(**kind), tokens(5)
    inputs, targets = x[:, :-1], x[:, 1:]
    for _ in range(2):
        (0.37 * F.cross_entropy(model(inputs)[0].flatten(0, 1), targets.flatten())).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for _ in range(2):
        nothing, loss = model(inputs, targets)
        (0.37 * loss).backward()
    assert nothing is None and loss.dtype == torch.float32 and loss.dim() == 0
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], atol=1e-6, rtol=1e-4, msg=f"{name}: {{}}".format)
    with torch.no_grad():
        exact = F.cross_entropy(model(inputs)[0].double().flatten(0, 1), targets.flatten()).item()
        assert model(inputs, targets)[1].item() == pytest.approx(exact, abs=1e-6)
    assert loss.item() == pytest.approx(exact, abs=1e-6)


def test_under_bfloat16_the_loss_stays_float32():
    model, x = build(), tokens()
    exact = model(x[:, :-1], x[:, 1:])[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(x[:, :-1], x[:, 1:])[1]
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact.item(), rel=1e-2)


@every_switch
@torch.no_grad()
def test_a_token_is_seen_only_by_what_comes_after_it(kind):
    model, x = build(**kind).eval(), tokens(2, 16)
    changed = x.clone()
    changed[:, 9] = (x[:, 9] + 1) % 50
    before, after = model(x)[0], model(changed)[0]
    torch.testing.assert_close(after[:, :9], before[:, :9], atol=1e-6, rtol=0)
    assert ((after[:, 9:] - before[:, 9:]).abs().amax(dim=2) > 1e-4).all()


@every_switch
@torch.no_grad()
def test_with_a_kv_cache_the_logits_are_the_same(kind):
    model, x = build(**kind).eval(), tokens(2, 16)
    cache = [[] for _ in model.transformer.h]
    parts = [model(x[:, :5], cache=cache)[0]] + [model(x[:, t:t + 1], cache=cache)[0] for t in range(5, 16)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(x)[0], atol=1e-5, rtol=0)
    assert cache[0][0].shape == (2, 2, 16, 16)               # sequences, heads, tokens, width of a head


def test_dropout_acts_in_training_only():
    model, plain, x = build(dropout=0.5), build(), tokens()
    one, two = (model(x[:, :-1], x[:, 1:])[1].item() for _ in range(2))
    expected = plain(x[:, :-1], x[:, 1:])[1].item()          # the same seed, hence the same weights
    assert len({one, two, expected}) == 3
    model.eval()
    assert model(x[:, :-1], x[:, 1:])[1].item() == expected


def test_every_dropout_acts():
    """Embedding, attention weights, attention output, MLP output: each alone changes the output."""
    x = tokens()[:, :-1]
    for part in ("embedding", "attention", "mlp"):
        model = build()
        if part == "embedding":
            model.config = dataclasses.replace(model.config, dropout=0.5)
        else:
            getattr(model.transformer.h[0], part.replace("attention", "attn")).dropout = 0.5
        assert not torch.equal(model(x)[0], build()(x)[0]), part


# ---------------------------------------------------------------- counts


@every_kind
def test_parameters_by_group(kind):
    model, (L, D, T, V) = build(**kind), (2, 32, 16, 50)
    biases = kind["bias"]
    assert model.count_params() == dict(
        token_embedding=V * D, position_embedding=T * D, attention=L * (4 * D * D + 4 * D * biases),
        mlp=L * (8 * D * D + 5 * D * biases), norms=(2 * L + 1) * D * (1 + biases),
        non_embedding=L * (12 * D * D + 9 * D * biases) + (2 * L + 1) * D * (1 + biases), head=V * D,
        total=sum(p.numel() for p in model.parameters()))
    n = model.count_params()
    assert n["total"] == (n["token_embedding"] + n["position_embedding"] + n["non_embedding"]
                          + (0 if kind["tie_weights"] else n["head"]))


@every_switch
def test_parameters_are_those_that_the_settings_foresee(kind):
    model = build(**kind)
    assert model.count_params() == settings.count_params(model.config)
    assert model.count_params()["total"] == sum(p.numel() for p in model.parameters())


def test_swiglu_has_as_many_parameters_as_gelu():
    gelu, swiglu = (build(mlp=mlp, n_embd=96).count_params()["mlp"] for mlp in ("gelu", "swiglu"))
    assert swiglu == gelu == 2 * 8 * 96 ** 2


def test_gpt2_small_has_its_published_size():
    with torch.device("meta"):
        model = GPT(Config(n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50257,
                           bias=True))
    n = model.count_params()
    assert n["total"] == 124_439_808                         # what Hugging Face's gpt2 counts
    assert n["total"] - n["position_embedding"] == 123_653_376
    assert n["non_embedding"] == 85_056_000                  # Kaplan et al. 2020, figure 6: about 85 M


def count_flops(model: GPT, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(x[:, :-1], x[:, 1:])[1].backward()
    return counter.get_total_flops()


@every_switch
def test_flops_equal_torchs_counter_on_forward_and_backward(kind):
    """SDPA's math backend multiplies whole T x T squares, two forward and four backward: so do we count."""
    model, x = build(**kind), tokens()
    with sdpa_kernel(SDPBackend.MATH):
        assert count_flops(model, x) == settings.count_flops(model.config)["total"] * x[:, 1:].numel()


def test_torchs_counter_misses_attention_in_the_fused_cpu_kernel():
    """Why the test above asks for the math backend: the counter has no formula for the flash kernel on CPUs.

    On GPUs it has one, which counts 7 matmuls of the square, not 6: a flash kernel computes the scores again
    on its way back. `exact` leaves out that work, as it depends on the kernel and not on the model.
    """
    model, x = build(), tokens()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        counted = count_flops(model, x)
    flops = settings.count_flops(model.config)
    assert counted == (flops["total"] - flops["scores"]) * x[:, 1:].numel()


def test_flops_by_part_sum_to_the_total():
    flops = settings.count_flops(build().config)
    assert sum(v for k, v in flops.items() if k != "total") == flops["total"]
    n = build().count_params()                               # without norms and scores it is 6 N
    assert flops["total"] - flops["scores"] == 6 * (n["attention"] + n["mlp"] + n["head"])


# ---------------------------------------------------------------- initial weights and learning rates


@every_kind
def test_initial_scales_are_those_of_the_table(kind):
    """Each matrix against GPT.init_weights' docstring; gains are 1 and biases 0."""
    D, L, mup = 256, 3, kind["parametrization"] == "mup"
    model = build(n_layer=L, n_embd=D, block_size=128, vocab_size=300, **kind)
    for name, p in model.named_parameters():
        if p.dim() == 1:
            assert (p == (0 if name.endswith("bias") else 1)).all(), name
            continue
        fan_in = 4 * D if "mlp.c_proj" in name else D
        std = (1 / math.sqrt(fan_in) if ".h." in name else 0.1) if mup else 0.02
        std /= math.sqrt(2 * L) if "c_proj" in name else 1
        assert p.std().item() == pytest.approx(std, rel=0.03), name
        assert abs(p.mean().item()) < 5 * std / math.sqrt(p.numel()), name
    assert (model.lm_head.weight is model.transformer.wte.weight) == kind["tie_weights"]


def test_a_new_gpt2_predicts_about_nothing():
    model, x = build(vocab_size=500), tokens(8, 17, 500)
    assert model(x[:, :-1], x[:, 1:])[1].item() == pytest.approx(math.log(500), abs=0.1)


@torch.no_grad()
def test_mup_is_gpt2_at_its_base_width_and_divides_its_logits_beyond():
    """Heads 16 wide scale attention alike in both (4/16 = 1/sqrt(16)); what is left is the head's 1/ratio."""
    for width, ratio in ((32, 1), (96, 3)):
        size = dict(n_embd=width, n_head=width // 16, base_width=32)
        gpt2, mup = build(**size), build(parametrization="mup", **size)
        mup.load_state_dict(gpt2.state_dict())
        x = tokens()[:, :-1]
        torch.testing.assert_close(mup(x)[0] * ratio, gpt2(x)[0], atol=1e-5, rtol=0)
    assert build(parametrization="mup", n_embd=128).transformer.h[0].attn.scale == 4 / 64
    assert build(n_embd=128).transformer.h[0].attn.scale == 1 / 8


@every_kind
def test_optimizer_groups_hold_every_parameter_once_with_its_rates(kind):
    model = build(**kind)
    ratio = 2 if kind["parametrization"] == "mup" else 1     # n_embd 32 over base_width 16
    groups = model.optimizer_groups(0.1)
    found = [(id(p), (g["lr_scale"], g["weight_decay"])) for g in groups for p in g["params"]]
    rates = dict(found)
    assert len(found) == len(rates) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        expected = (1.0, 0.0) if p.dim() == 1 else (1 / ratio, 0.1 * ratio) if ".h." in name else (1.0, 0.1)
        assert rates[id(p)] == pytest.approx(expected), name


def test_under_mup_a_learning_rate_moves_wide_and_narrow_models_alike():
    """Coordinate check (Yang et al. 2022, appendix D.1): how far three Adam steps move the logits."""
    moved = {}
    for parametrization, width in product(("gpt2", "mup"), (64, 256)):
        model = build(n_embd=width, n_head=width // 32, parametrization=parametrization, base_width=64)
        x, optimizer = tokens(8), adamw(model, lr=3e-3)
        before = model(x[:, :-1])[0].detach()
        for _ in range(3):
            step(model, optimizer, x)
        moved[parametrization, width] = (model(x[:, :-1])[0] - before).square().mean().sqrt().item()
    assert 0.5 < moved["mup", 256] / moved["mup", 64] < 1.5
    assert moved["gpt2", 256] / moved["gpt2", 64] > 2        # the check can tell


class KeepsInput(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module, self.inputs = module, []

    def forward(self, x):
        self.inputs.append(x.detach())
        return self.module(x)


def test_under_completep_a_learning_rate_moves_deep_and_shallow_models_alike():
    """As above, in depth (Dey et al. 2025, figure 3): how far steps move what the blocks hand to the head."""
    moved = {}
    for parametrization, depth in product(("mup", "completep"), (2, 16)):
        model = build(n_layer=depth, parametrization=parametrization, base_width=32, base_depth=2)
        model.transformer.ln_f = KeepsInput(model.transformer.ln_f)
        x, optimizer = tokens(8), adamw(model, lr=1e-2)
        for _ in range(4):
            step(model, optimizer, x)
        stream = model.transformer.ln_f.inputs
        moved[parametrization, depth] = (stream[3] - stream[0]).square().mean().sqrt().item()
    assert 0.67 < moved["completep", 16] / moved["completep", 2] < 1.5
    assert moved["mup", 16] / moved["mup", 2] > 2            # the check can tell


def test_completep_is_mup_at_its_base_depth_and_scales_the_rest():
    mup, completep = (build(parametrization=p, base_depth=2) for p in ("mup", "completep"))
    x = tokens()
    assert torch.equal(mup(x[:, :-1])[0], completep(x[:, :-1])[0])
    deep = build(parametrization="completep", base_depth=1, n_embd=64, base_width=16)
    assert deep.transformer.h[0].share == 0.5                # n_layer 2
    blocks, tables, vectors = deep.optimizer_groups(0.1)
    assert (blocks["lr_scale"], blocks["weight_decay"], blocks["eps"]) == (1 / 4, 0.4, 1e-8 / 8)
    assert (tables["lr_scale"], tables["weight_decay"], tables["eps"]) == (1.0, 0.1, 1e-8 / 4)


# ---------------------------------------------------------------- the switches


def test_rope_sees_distances_and_not_places():
    """Scores of one query and one key at two places that are as far apart, and at another distance."""
    attention = build(position="rope").transformer.h[0].attn
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(3))

    def turned(x, place: int):
        return rotate(x, attention.cos[place:place + 1], attention.sin[place:place + 1])

    def score(at_q: int, at_k: int) -> float:
        return (turned(q, at_q) * turned(k, at_k)).sum().item()

    assert score(9, 4) == pytest.approx(score(15, 10), abs=1e-5)
    assert abs(score(9, 4) - score(9, 5)) > 0.01
    assert score(0, 0) == pytest.approx((q * k).sum().item(), abs=1e-6)


@torch.no_grad()
def test_norms_queries_and_activations_are_those_of_their_papers():
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(4))
    block = build(norm="rms", mlp="swiglu", qk_norm=True).transformer.h[0]
    torch.testing.assert_close(block.ln_1(x), x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt())
    q = block.attn.ln_q(x[:, :16])
    torch.testing.assert_close(q.square().mean(1), torch.ones(5), atol=1e-4, rtol=0)
    mlp, y = block.mlp, x[None]
    gate, up = (y @ mlp.c_fc.weight.T).split(85, dim=2)      # 8/3 of 32
    torch.testing.assert_close(mlp(y), (gate * gate.sigmoid() * up) @ mlp.c_proj.weight.T)
    mlp = build(mlp="relu2").transformer.h[0].mlp
    torch.testing.assert_close(mlp(y), (y @ mlp.c_fc.weight.T).clamp(min=0) ** 2 @ mlp.c_proj.weight.T)


def test_muon_on_cpu_steps_as_torchs_does():
    """cpu.Muon in float32 against torch's in bfloat16: four steps of tall, wide and square matrices."""
    rng = torch.Generator().manual_seed(5)
    start = [torch.randn(shape, generator=rng) for shape in ((96, 32), (32, 32), (32, 128), (96, 32))]
    ours, theirs = ([torch.nn.Parameter(w.clone()) for w in start] for _ in range(2))
    one = cpu.Muon(ours, lr=0.02, weight_decay=0.1)
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1)
    for _ in range(4):
        for p, q in zip(ours, theirs):
            p.grad = torch.randn(p.shape, generator=rng)
            q.grad = p.grad.clone()
        one.step()
        other.step()
    for w, p, q in zip(start, ours, theirs):
        assert (p - q).abs().max() < 0.02 * (p - w).abs().max()


def test_muon_takes_the_blocks_matrices_at_its_own_rate_and_decay():
    for settings_, decay in ((dict(muon_rate=3.0), 0.1), (dict(muon_rate=3.0, muon_decay=2.0), 0.2)):
        blocks, *others = build(optimizer="muon", parametrization="mup", **settings_).optimizer_groups(0.1)
        assert (blocks["lr_scale"], blocks["weight_decay"]) == (3.0, decay)
        assert all(p.dim() == 2 for p in blocks["params"]) and len(blocks["params"]) == 2 * 4
        assert others[0]["lr_scale"] == 1.0


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("parametrization, first, second", [("gpt2", 3.933784, 3.676389),
                                                            ("mup", 3.924564, 3.631913)])
def test_golden_step(parametrization, first, second):
    """Loss of a fixed model on fixed data, before and after one AdamW step, recorded on CPU with torch 2.13.

    It notices an accidental change of architecture, initial weights, loss, decay or learning rates. After a
    change on purpose, record the new numbers.
    """
    model = build(parametrization=parametrization, bias=True)
    x = (torch.arange(4 * 17).view(4, 17) ** 2 // 3) % 50
    optimizer = adamw(model, lr=1e-2, weight_decay=0.1)
    assert step(model, optimizer, x) == pytest.approx(first, abs=1e-5)
    assert step(model, optimizer, x) == pytest.approx(second, abs=1e-5)


@every_switch
def test_it_learns_a_small_batch_by_heart(kind):
    model, x = build(**kind), tokens(4)
    optimizer = adamw(model, lr=1e-2)
    losses = [step(model, optimizer, x) for _ in range(60)]
    assert losses[0] > 3.5 and losses[-1] < 0.1


@each_parametrization
def test_the_same_seed_builds_the_same_model(parametrization):
    one, two = build(parametrization=parametrization), build(parametrization=parametrization)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))


def test_heads_must_divide_the_width():
    with pytest.raises(AssertionError, match="n_embd 32 is not divisible by n_head 3"):
        build(n_head=3)
