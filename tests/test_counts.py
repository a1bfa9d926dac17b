"""counts.py: parameters and FLOPs under each convention, against arithmetic done by hand for GPT-2 small."""
import numpy as np
import pytest

from runtime.basics import UserError
from scaling.laws import counts

# GPT-2 small with a vocabulary of 50,257: 12 layers of 768, context 1024, tied head, no biases.
VOCABULARY, LAYERS, HEADS, WIDTH, CONTEXT = 50257, 12, 12, 768, 1024
BODY = LAYERS * 12 * WIDTH ** 2 + (2 * LAYERS + 1) * WIDTH
GPT2 = {"n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH, "block_size": CONTEXT, "tokens": 1e9,
        "params_non_embedding": BODY, "params_head": VOCABULARY * WIDTH,
        "params_embedding": (VOCABULARY + CONTEXT) * WIDTH,
        "params_total": BODY + (VOCABULARY + CONTEXT) * WIDTH}


def table(**changes):
    return {k: np.array([float(v)]) for k, v in (GPT2 | changes).items()}


def test_params_by_convention():
    # nanoGPT's 123,653,376 without position embeddings has biases too; this model has none.
    assert counts.params(table())[0] == BODY + VOCABULARY * WIDTH == 123_551_232
    assert counts.params(table(), "non_embedding")[0] == BODY
    assert counts.params(table(), "total")[0] == BODY + (VOCABULARY + CONTEXT) * WIDTH


def test_tied_and_untied_heads_count_alike_where_the_head_counts():
    untied = table(params_total=GPT2["params_total"] + VOCABULARY * WIDTH)
    assert counts.params(untied)[0] == counts.params(table())[0]
    assert counts.params(untied, "total")[0] > counts.params(table(), "total")[0]


@pytest.mark.parametrize("convention", counts.PARAMS)
def test_6nd_uses_the_same_n(convention):
    t = table()
    assert counts.flops(t, "6nd", convention)[0] == 6 * counts.params(t, convention)[0] * 1e9


def test_6nd_attention_is_palm_appendix_b():
    # PaLM: 6 N + 12 L H Q T per token, with H Q = d_model.
    assert counts.flops(table(), "6nd_attention")[0] / 1e9 == pytest.approx(
        6 * counts.params(table())[0] + 12 * LAYERS * WIDTH * CONTEXT)


def test_exact_counts_every_matmul():
    qkv, logits, reduce, project = 3 * WIDTH * WIDTH, CONTEXT * WIDTH, CONTEXT * WIDTH, WIDTH * WIDTH
    layer = qkv + logits + reduce + project + 2 * 4 * WIDTH * WIDTH              # multiply-adds per token
    forward = 2 * (LAYERS * layer + VOCABULARY * WIDTH)
    assert counts.flops(table(), "exact")[0] == pytest.approx(3 * forward * 1e9)
    assert counts.flops(table(flops_exact=7.0), "exact")[0] == 7.0       # what the run measured goes first


def test_chinchilla_is_appendix_f():
    T, d, V, h = CONTEXT, WIDTH, VOCABULARY, HEADS
    attention = 2 * 3 * T * d * d + 2 * T * T * d + 3 * h * T * T + 2 * T * T * d + 2 * T * d * d
    forward = 2 * T * V * d + LAYERS * (attention + 2 * T * (d * 4 * d + d * 4 * d)) + 2 * T * d * V
    assert counts.flops(table(), "chinchilla")[0] == pytest.approx(3 * forward * 1e9 / T)


def test_a_column_d_ff_replaces_four_widths():
    wide = counts.flops(table(d_ff=8 * WIDTH), "exact")[0] - counts.flops(table(), "exact")[0]
    assert wide == pytest.approx(6 * LAYERS * 2 * WIDTH * 4 * WIDTH * 1e9)


def test_whole_tables_at_once():
    t = {k: np.repeat(v, 3) for k, v in table().items()} | {"tokens": np.array([1.0, 2.0, 3.0])}
    for convention in counts.FLOPS:
        C = counts.flops(t, convention)
        np.testing.assert_allclose(C / C[0], [1, 2, 3])


def test_pf_day():
    assert counts.PF_DAY == 8.64e19


@pytest.mark.parametrize("call, message", [
    (lambda: counts.params(table(), "non_embeding"), "did you mean 'non_embedding'"),
    (lambda: counts.flops(table(), "6ND"), "there are 6nd, 6nd_attention, exact, chinchilla"),
    (lambda: counts.params({"tokens": np.ones(1)}), "no column 'params_non_embedding'"),
    (lambda: counts.flops({k: v for k, v in table().items() if k != "n_head"}, "chinchilla"), "'n_head'"),
    (lambda: counts.params(table() | {"params_head": np.array(["x"], object)}), "hold numbers; data row 1"),
    (lambda: counts.params(table() | {"params_head": np.array(["1_0"], object)}), "data row 1 holds '1_0'"),
])
def test_bad_names_are_one_clear_line(call, message):
    with pytest.raises(UserError) as e:
        call()
    assert message in str(e.value) and "\n" not in str(e.value)
