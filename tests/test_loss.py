"""The kernels of runtime/cpu.py against what they replace: cross-entropy, attention, linear layers, GELU."""
import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from config.settings import Config
from model import GPT
from runtime import cpu
from runtime.cpu import BlockedAttention, BlockedCrossEntropy, Gelu, LinearFunction

CLOSE = 1e-5                     # of the largest entry, against float64
WIDE = dict(n_layer=1, n_head=2, n_embd=24, block_size=16, vocab_size=2500)    # more than a block of columns


def tensors(*shapes: tuple, seed: int = 0, dtype=torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return [x.requires_grad_() for x in made]


def targets_of(n: int, vocab: int, ignored: float = 0.0, seed: int = 0) -> torch.Tensor:
    """n targets, of which the share `ignored`, but never all, is -1."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(vocab, (n,), generator=generator)
    targets[1:][torch.rand(n - 1, generator=generator) < ignored] = -1
    return targets


def plain_loss(x: torch.Tensor, w: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(x @ w.T, targets, ignore_index=-1)


def value_and_gradients(function, *inputs: torch.Tensor, scale=1.0) -> list[torch.Tensor]:
    """[result, gradient of (result * scale).sum() by each of `inputs`]"""
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad((y * scale).sum(), inputs)]


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        error = (a.double() - b.double()).abs().max() / b.double().abs().max()
        assert a.shape == b.shape and error < CLOSE, f"output {i}: relative error {error:.1e}"


def in_double(*inputs: torch.Tensor) -> list[torch.Tensor]:
    return [x.detach().double().requires_grad_() for x in inputs]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(cpu, "ROWS", 3)
    monkeypatch.setattr(cpu, "COLUMNS", 4)


# ---------------------------------------------------------------- cross-entropy


@pytest.mark.parametrize("n, vocab, width, ignored", [
    (1, 1024, 8, 0), (7, 2048, 1, 0.5), (512, 4096, 16, 0), (513, 2049, 33, 0.3), (700, 5003, 64, 0),
    (1100, 1500, 24, 0.9), (2, 50257, 64, 0), (600, 3000, 128, 0.1)])
def test_loss_and_gradients_equal_cross_entropy(n, vocab, width, ignored):
    x, w = tensors((n, width), (vocab, width), seed=n)
    targets = targets_of(n, vocab, ignored)
    for scale in (1.0, -0.37):                               # what comes back from above
        found = value_and_gradients(lambda x, w: BlockedCrossEntropy.apply(x, w, targets), x, w, scale=scale)
        exact = value_and_gradients(lambda x, w: plain_loss(x, w, targets), *in_double(x, w), scale=scale)
        assert_close(found, exact)


def test_random_shapes(small_blocks):
    """Blocks of 3 tokens and 4 words: every way in which the last ones can be short."""
    generator = torch.Generator().manual_seed(5)
    for seed in range(60):
        n, vocab, width = torch.randint(1, 14, (3,), generator=generator).tolist()
        x, w = tensors((n, width), (vocab, width), seed=seed)
        targets = targets_of(n, vocab, 0.3, seed)
        found = value_and_gradients(lambda x, w, y=targets: BlockedCrossEntropy.apply(x, w, y), x, w)
        exact = value_and_gradients(lambda x, w, y=targets: plain_loss(x, w, y), *in_double(x, w))
        for a, b in zip(found, exact):                       # of one word, loss and gradients are 0
            torch.testing.assert_close(a.double(), b, rtol=CLOSE, atol=1e-6)


def test_gradcheck_of_the_loss(small_blocks):
    x, w = tensors((8, 3), (9, 3), dtype=torch.float64)
    targets = targets_of(8, 9, 0.4)
    assert (targets == -1).any()
    assert gradcheck(lambda x, w: 1.7 * BlockedCrossEntropy.apply(x, w, targets), (x, w))
    assert gradcheck(lambda w: BlockedCrossEntropy.apply(w[:8] ** 2, w, targets), (w,))          # a tied head


def test_ignored_targets_do_not_count(small_blocks):
    x, w = tensors((8, 3), (9, 3))
    targets = torch.full((8,), -1)
    targets[5] = 2                                           # all but one
    loss, dx, dw = value_and_gradients(lambda x, w: BlockedCrossEntropy.apply(x, w, targets), x, w)
    assert_close([loss], [plain_loss(x[5:6], w, targets[5:6]).detach()])
    assert (dx[targets == -1] == 0).all() and (dx[5] != 0).all()


def test_without_any_target_the_mean_is_nan_as_in_cross_entropy():
    x, w = tensors((4, 3), (9, 3))
    none = torch.full((4,), -1)
    assert plain_loss(x, w, none).isnan() and BlockedCrossEntropy.apply(x, w, none).isnan()


def test_large_logits_do_not_overflow(small_blocks):
    """Up to +-1e4, with each row's maximum in another block than most of its exponentials."""
    x, w = (t.detach().mul(60).requires_grad_() for t in tensors((20, 5), (30, 5)))
    targets = targets_of(20, 30)
    found = value_and_gradients(lambda x, w: BlockedCrossEntropy.apply(x, w, targets), x, w)
    assert found[0] > 1000 and all(y.isfinite().all() for y in found)
    assert_close(found, value_and_gradients(lambda x, w: plain_loss(x, w, targets), *in_double(x, w)))


def test_without_gradients_the_loss_is_the_same_and_none_are_made(monkeypatch):
    x, w = tensors((20, 8), (1030, 8))
    targets = targets_of(20, 1030)
    expected = BlockedCrossEntropy.apply(x, w, targets)
    made, index_add = [], torch.Tensor.index_add_            # the head's gradient is made by it
    monkeypatch.setattr(torch.Tensor, "index_add_", lambda *args: made.append(1) or index_add(*args))
    gpt, ids = GPT(Config(**WIDE)), torch.arange(32).view(2, 16)
    with torch.no_grad():
        assert torch.equal(BlockedCrossEntropy.apply(x, w, targets, False), expected)
        without = gpt(ids, ids)[1]
    assert not made and torch.equal(gpt(ids, ids)[1], without) and made


# ---------------------------------------------------------------- attention and linear layers


def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)


def blocked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return BlockedAttention.apply(q, k, v, 0.3)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 63, 5), (1, 2, 64, 8), (2, 1, 65, 4),
                                   (1, 4, 300, 16)])
def test_attention_equals_sdpa(shape):
    *inputs, scale = tensors(*[shape] * 4)
    found = value_and_gradients(blocked, *inputs, scale=scale.detach())
    exact = value_and_gradients(causal, *in_double(*inputs), scale=scale.detach().double())
    for a, b in zip(found, exact):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=CLOSE * max(1, b.abs().max()))


def test_attention_reads_heads_in_place():
    """q, k and v as the model has them: views of one tensor, heads not contiguous."""
    qkv, = tensors((2, 70, 3 * 3 * 4))
    parts = [y.view(2, 70, 3, 4).transpose(1, 2) for y in qkv.split(12, dim=2)]
    found = value_and_gradients(blocked, *parts)
    assert_close(found, value_and_gradients(causal, *in_double(*parts)))


def test_attention_of_large_scores_does_not_overflow():
    inputs = [x.detach().mul(60).requires_grad_() for x in tensors(*[(1, 1, 80, 8)] * 3)]
    found = value_and_gradients(blocked, *inputs)
    assert all(y.isfinite().all() for y in found)
    torch.testing.assert_close(found[0].double(), causal(*in_double(*inputs)), rtol=1e-3, atol=1e-2)


def test_gradcheck_of_attention():
    assert gradcheck(blocked, tensors(*[(1, 2, 66, 1)] * 3, dtype=torch.float64))


@pytest.mark.parametrize("T, width, pays, wins", [(256, 15, False, True), (256, 16, False, False),
                                                  (256, 16, True, True), (255, 8, True, False)])
def test_where_attention_wins(T, width, pays, wins, monkeypatch):
    monkeypatch.setattr(cpu, "onednn_pays", lambda: pays)
    q = torch.zeros(1, 1, T, width)
    assert cpu.attention_wins(q, q, 0.0) is wins
    assert not cpu.attention_wins(q, q, 0.1) and not cpu.attention_wins(q, q[:, :, :9], 0.0)


def plain_gelu(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0, 1e4])     # 1e4: the cube is 1e12, and the sigmoid 0 or 1
def test_gelu(scale):
    x = (tensors((300,))[0].detach() * scale).requires_grad_()
    weights = torch.arange(300.0)
    assert_close(value_and_gradients(Gelu.apply, x, scale=weights),
                 value_and_gradients(plain_gelu, *in_double(x), scale=weights.double()))


def test_gradcheck_of_gelu():
    assert gradcheck(Gelu.apply, tensors((40,), dtype=torch.float64))


def test_small_gelus_are_pytorchs(monkeypatch):
    monkeypatch.setattr(cpu.Gelu, "apply", lambda x: "ours")
    assert cpu.gelu(torch.zeros(128, 256)) == "ours"
    assert torch.equal(cpu.gelu(torch.ones(127, 256)), plain_gelu(torch.ones(127, 256)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(5,), (3, 7)])
def test_linear_layers(rows, bias):
    inputs = tensors((*rows, 6), (9, 6), *[(9,)] * bias)
    layer = LinearFunction.apply if bias else lambda x, w: LinearFunction.apply(x, w, None)
    scale = torch.arange(9.0)
    found = value_and_gradients(layer, *inputs, scale=scale)
    assert_close(found, value_and_gradients(F.linear, *in_double(*inputs), scale=scale.double()))
    assert gradcheck(layer, in_double(*inputs))


# ---------------------------------------------------------------- the model that uses them


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shape", [WIDE, dict(WIDE, n_embd=96, block_size=300)], ids=["wide", "long"])
def test_gpt_with_them_has_the_gradients_of_gpt_without(tied, shape, monkeypatch):
    """Two unequal micro-batches accumulate, as train.py scales them; some targets are ignored."""
    torch.manual_seed(1)
    gpt = GPT(Config(**shape, tie_weights=tied, bias=True))
    ids = torch.randint(2500, (3, shape["block_size"] + 1))
    targets = ids[:, 1:].clone()
    targets[0, 3:9] = -1
    gradients = []
    for paying in (cpu.onednn_pays, lambda: False):
        monkeypatch.setattr(cpu, "onednn_pays", paying)
        gpt.zero_grad()
        for part in (slice(0, 1), slice(1, 3)):
            x, y = ids[part, :-1], targets[part]
            loss = (F.cross_entropy(gpt(x)[0].flatten(0, 1), y.flatten(), ignore_index=-1) if gradients else
                    gpt(x, y)[1])
            (loss * len(x) / 3).backward()
        gradients.append([p.grad.clone() for p in gpt.parameters()])
    for (name, _), a, b in zip(gpt.named_parameters(), *gradients, strict=True):
        assert (a - b).norm() <= CLOSE * b.norm(), name


def test_the_blocked_loss_is_used_where_it_should_be(monkeypatch):
    used = []
    apply = BlockedCrossEntropy.apply
    monkeypatch.setattr(BlockedCrossEntropy, "apply", lambda *args: used.append(1) or apply(*args))
    ids = torch.arange(32).view(2, 16)
    GPT(Config(**WIDE))(ids, ids)
    assert used
    with torch.autocast("cpu", dtype=torch.bfloat16):        # it does its own arithmetic
        GPT(Config(**WIDE))(ids, ids)
    GPT(Config(**WIDE | dict(vocab_size=96)))(ids, ids)   # where blocks gain nothing
    assert len(used) == 1


def test_matmul_precision_is_put_back(monkeypatch):
    """On GPUs it decides whether TF32 is used, so no kernel may leave it changed, even when it fails."""
    monkeypatch.setattr(cpu, "onednn_pays", lambda: True)
    before, seen = torch.get_float32_matmul_precision(), []

    @cpu.onednn_matmul
    def multiply(a, b):
        seen.append(torch.get_float32_matmul_precision())
        return a @ b

    multiply(torch.ones(2, 2), torch.ones(2, 2))
    with pytest.raises(RuntimeError):
        multiply(torch.ones(2, 2), torch.ones(3, 3))
    assert seen == ["medium"] * 2 and torch.get_float32_matmul_precision() == before


def test_onednn_is_used_only_where_it_is_float32():
    if not cpu.onednn_pays():
        pytest.skip("no AVX-512, or its float32 matmuls round to bfloat16")
    a, b = tensors((300, 200), (200, 100))
    product = cpu.onednn_matmul(torch.mm)(a.detach(), b.detach())
    assert (product.double() - a.double() @ b.double()).abs().max() < 1e-5 * math.sqrt(200) * 4
