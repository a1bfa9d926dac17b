"""Parameters N and training FLOPs C of each run, under named conventions.

The exponents of a scaling law depend on what is counted: Kaplan et al. 2020 leave out the embeddings,
Hoffmann et al. 2022 count everything, and most of the distance between the two papers is in that choice
(Pearce & Song 2024, Porian et al. 2024). So every number carries the name of its convention. All functions
work on a whole table of runs, {column: array} as `scaling.tables.csv.read_table` gives it.
"""
from collections.abc import Mapping

import numpy as np

from runtime.basics import UserError, nearest

PF_DAY = 1e15 * 24 * 3600                 # 8.64e19 FLOPs: one petaFLOP/s for one day
PARAMS = ("non_embedding", "total", "non_embedding_plus_head")
FLOPS = ("6nd", "6nd_attention", "exact", "chinchilla")
DEFAULT_PARAMS, DEFAULT_FLOPS = "non_embedding_plus_head", "6nd"


def check_name(name: str, known: tuple[str, ...], what: str) -> None:
    """Raise UserError, with the nearest name, unless `name` is one of `known`."""
    if name not in known:
        raise UserError(f"unknown {what} convention {name!r}{nearest(name, known)}; there are "
                        + ", ".join(known))


def column(table: Mapping[str, np.ndarray], name: str, why: str) -> np.ndarray:
    """The column `name` as floats. Raises UserError, saying what needs it, when it is absent or text."""
    if name not in table:
        raise UserError(f"no column {name!r}{nearest(name, table)}, which {why} needs: add it to the table")
    if table[name].dtype == object:                    # the reader found a cell that is no number
        for row, cell in enumerate(table[name], 1):
            if not is_number(cell):
                raise UserError(f"column {name!r} must hold numbers; data row {row} holds {cell!r}: write it "
                                "as 124e6, leave it empty, or take the row out")
    return np.asarray(table[name], float)


def is_number(cell: str) -> bool:
    """Whether a cell of a table is a number, or empty; float() alone would take 1_000."""
    try:
        float(cell.strip() or "nan")
        return "_" not in cell
    except ValueError:
        return False


def params(table: Mapping[str, np.ndarray], convention: str = DEFAULT_PARAMS) -> np.ndarray:
    """N per run. Raises UserError.

    non_embedding            attention, MLP and norms (Kaplan et al., section 2.1)
    total                    every parameter once (Hoffmann et al.)
    non_embedding_plus_head  what works on each token
    """
    check_name(convention, PARAMS, "parameter")
    if convention == "total":
        return column(table, "params_total", "params=total")
    body = column(table, "params_non_embedding", f"params={convention}")
    # A tied head costs no parameters of its own, yet it multiplies every token: it counts here, tied or not.
    if convention == "non_embedding":
        return body
    return body + column(table, "params_head", f"params={convention}")


def flops(table: Mapping[str, np.ndarray], convention: str = DEFAULT_FLOPS,
          params_convention: str = DEFAULT_PARAMS) -> np.ndarray:
    """Training FLOPs C per run, forward and backward. Raises UserError.

    6nd            6 N D with N under `params_convention` (Kaplan et al., section 2.1)
    6nd_attention  (6 N + 12 n_layer n_embd T) D (Chowdhery et al. 2022, PaLM, appendix B)
    exact          every matmul as written: weights, head and the full T x T attention, nothing else
    chinchilla     Hoffmann et al. 2022, appendix F: also the embedding as a matmul, and the softmax
    """
    check_name(convention, FLOPS, "FLOP")
    why = f"flops={convention}"
    D = column(table, "tokens", why)
    if convention == "6nd":
        return 6 * params(table, params_convention) * D
    if convention == "exact" and "flops_exact" in table:
        recorded = column(table, "flops_exact", why)
        if np.isfinite(recorded).all():                # what the runs counted themselves goes first
            return recorded
    L, d, T = (column(table, c, why) for c in ("n_layer", "n_embd", "block_size"))
    attention = 12 * L * d * T                         # QK^T and AV: 2 x 2 T d forward, twice that backward
    if convention == "6nd_attention":
        return (6 * params(table, params_convention) + attention) * D
    head = column(table, "params_head", why)           # n_vocab * n_embd
    ff = column(table, "d_ff", why) if "d_ff" in table else 4 * d
    weights = L * (4 * d * d + 2 * d * ff) + head
    if convention == "exact":
        return (6 * weights + attention) * D
    softmax = 3 * L * column(table, "n_head", why) * T
    return 3 * (2 * (weights + head) + attention / 3 + softmax) * D      # backward is twice forward
