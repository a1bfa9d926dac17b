"""The laws of the field: the loss that each gives, and its parameters as papers print them.

Each law is a model (log-loss and its gradient), the two ways between its theta and its parameters, and a row
of the table FORMS, so `loss_of` evaluates any of them, and `fit_form` (scaling/laws/forms.py) fits it.
"""
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from scaling.laws.solver import Array, Model

# Muennighoff et al. 2023, fitted to C4: E, A, B, alpha = beta, and the two constants of repeated data.
C4 = {"E": np.exp(0.6254804), "A": np.exp(6.255414), "B": np.exp(7.3049974), "alpha": 0.3526596,
      "beta": 0.3526596, "R_D": 15.387756, "R_N": 5.309743}


# ---- Models: theta (B, p) is a batch of parameters, X (k, n) or (B, k, n) the logarithms of k inputs. ----

@np.errstate(over="ignore", invalid="ignore")          # a step too far; the solver refuses it
def additive(theta: Array, X: Array) -> tuple[Array, Array]:
    """log(e^e + sum_k e^(a_k - alpha_k x_k)), theta = (e, a_1, alpha_1, a_2, alpha_2, ...).

    With one input this is L(N) = E + A/N^alpha, with two the surface of Hoffmann et al. 2022 (eq. 2); without
    E (e = -inf) and with (N, S) it is Kaplan et al. 2020, eq. 1.6. Returns log-loss (B, n) and gradient
    (B, p, n).
    """
    E = np.exp(theta[:, :1])
    terms = np.exp(theta[:, 1::2, None] - theta[:, 2::2, None] * X)
    L = E + terms.sum(1)
    grad = np.empty((*theta.shape, X.shape[-1]))
    grad[:, 0] = E / L
    grad[:, 1::2] = terms / L[:, None]
    grad[:, 2::2] = -grad[:, 1::2] * X
    return np.log(L), grad


def one_exponent(theta: Array, X: Array) -> tuple[Array, Array]:
    """Gadre et al. 2024, eq. 4: Hoffmann's form with one exponent; theta = (e, a, b, eta)."""
    y, grad = additive(theta[:, [0, 1, 3, 2, 3]], X)
    return y, np.stack([grad[:, 0], grad[:, 1], grad[:, 3], grad[:, 2] + grad[:, 4]], 1)


def kaplan_nd(theta: Array, X: Array) -> tuple[Array, Array]:
    """Kaplan et al. 2020, eq. 1.5: L = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D.

    theta = (n_c, r, d_c, alpha_D), where r = alpha_N/alpha_D and the bracket is e^(n_c - r n) + e^(d_c - d).
    """
    n_c, r, d_c, power = theta.T[:, :, None]
    n, d = np.moveaxis(X, -2, 0)
    u = n_c - r * n
    v = d_c - d
    bracket = np.logaddexp(u, v)
    pu = np.exp(u - bracket)
    pv = np.exp(v - bracket)
    grad = [power * pu,
            -power * pu * n,
            power * pv,
            bracket]
    return power * bracket, np.stack(grad, 1)


def broken(theta: Array, X: Array) -> tuple[Array, Array]:
    """Smoothly broken power law with one break (Caballero et al. 2023, eq. 1 with n = 1):
    L = E + A x^-c0 (1 + (x/d)^(1/f))^(-c1 f); theta = (e, a, c0, c1, log d, log f)."""
    e, a, c0, c1, d, log_f = theta.T[:, :, None]
    x = X[..., 0, :]
    f = np.exp(log_f)
    u = (x - d) / f
    soft = np.logaddexp(0, u)                           # log(1 + e^u)
    slope = 0.5 * (1 + np.tanh(u / 2))                  # and its derivative
    z = a - c0 * x - c1 * f * soft
    y = np.logaddexp(e, z)
    pz = np.exp(z - y)
    grad = [np.exp(e - y),
            pz,
            pz * -x,
            pz * -(f * soft),
            pz * (c1 * slope),
            pz * (c1 * f * (u * slope - soft))]
    return y, np.stack(grad, 1)


def decay(x, log_R) -> tuple[Array, Array, Array]:
    """What x repeats are worth (Muennighoff et al. 2023, eq. 5): log(1 + R (1 - e^(-x/R))), its derivative in
    log R, and that of log(unique times it) in log unique."""
    R = np.exp(log_R)
    gone = np.exp(-x / R)
    worth = -R * np.expm1(-x / R)
    w = 1 + worth
    return np.log(w), (worth - x * gone) / w, 1 - gone * (1 + x) / w


def repeated(theta: Array, X: Array) -> tuple[Array, Array]:
    """The surface of N parameters trained on D tokens of which U are unique: theta = (log E, log A, alpha,
    log B, beta, log R_D, log R_N), X = log (N, D, U), not centred (Muennighoff et al. 2023, eqs. 5, 6, 8).

    Repeats beyond the first epoch, and parameters beyond what is optimal for U, decay in value with constants
    R_D and R_N.
    """
    _, a, alpha, b, beta, log_RD, log_RN = theta.T[:, :, None]
    n, d, u = np.moveaxis(X, -2, 0)
    u = np.minimum(d, u)
    # Where U tokens seen once are optimal, both terms fall alike: alpha A/N^alpha = beta B/U^beta.
    n_opt = (np.log(alpha / beta) + a - b + beta * u) / alpha
    n_unique = np.minimum(n, n_opt)
    more_d, by_RD, _ = decay(np.expm1(d - u), log_RD)
    more_n, by_RN, by_n = decay(np.expm1(n - n_unique), log_RN)
    y, grad = additive(theta[:, :5], np.stack([n_unique + more_n, u + more_d], 1))
    by_RN = -alpha * grad[:, 1] * by_RN
    by_RD = -beta * grad[:, 3] * by_RD
    # The law itself says which parameters are in excess, so A, alpha, B and beta also act through N_opt.
    through = np.where(n > n_opt, -grad[:, 1] * by_n, 0)
    grad[:, 1] += through
    grad[:, 2] += through * (1 / alpha - n_opt)
    grad[:, 3] -= through
    grad[:, 4] += through * (u - 1 / beta)
    return y, np.concatenate([grad, by_RD[:, None], by_RN[:, None]], 1)


# ---- From theta to parameters as papers print them, and back; n, d, s, x, c: the means of the inputs. ----

def scale(x: Array) -> Array:
    """e^x within what a float holds: an N_c can lie anywhere where its exponent is almost 0."""
    return np.exp(np.clip(x, -600, 600))


def surface_of(theta, n, d):
    e, a, alpha, b, beta = theta.T
    return {"E": np.exp(e),
            "A": np.exp(a + alpha * n),
            "B": np.exp(b + beta * d),
            "alpha": alpha,
            "beta": beta,
            "a": beta / (alpha + beta),                 # exponents of N_opt and D_opt in C
            "b": alpha / (alpha + beta)}


def surface_theta(E, A, B, alpha, beta, center=(0, 0), **_):
    n, d = center
    return (np.log(E),
            np.log(A) - alpha * n, alpha,
            np.log(B) - beta * d, beta)


def one_exponent_of(theta, n, d):
    e, a, b, eta = theta.T
    return {"E": np.exp(e),
            "A": np.exp(a + eta * n),
            "B": np.exp(b + eta * d),
            "eta": eta}


def one_exponent_theta(E, A, B, eta, **_):
    return np.log(E), np.log(A), np.log(B), eta


def power_of(theta, x):
    e, a, alpha = theta.T
    return {"alpha": alpha,
            "x_c": scale(a / alpha + x),
            "L_inf": np.exp(e)}


def power_theta(alpha, x_c, L_inf, **_):
    return np.log(L_inf), alpha * np.log(x_c), alpha


def frontier_of(theta, c):
    e, a, gamma = theta.T
    return {"gamma": gamma,
            "log_C_c": a / gamma + c,
            "L_inf": np.exp(e)}


def frontier_theta(gamma, log_C_c, L_inf, **_):
    return np.log(L_inf), gamma * log_C_c, gamma


def kaplan_nd_of(theta, n, d):
    n_c, r, d_c, alpha_D = theta.T
    return {"alpha_N": r * alpha_D,
            "alpha_D": alpha_D,
            "N_c": scale(n_c / r + n),
            "D_c": scale(d_c + d)}


def kaplan_nd_theta(alpha_N, alpha_D, N_c, D_c, **_):
    r = alpha_N / alpha_D
    return r * np.log(N_c), r, np.log(D_c), alpha_D


def kaplan_ns_of(theta, n, s):
    _, n_c, alpha_N, s_c, alpha_S = theta.T
    return {"alpha_N": alpha_N,
            "alpha_S": alpha_S,
            "N_c": scale(n_c / alpha_N + n),
            "S_c": scale(s_c / alpha_S + s)}


def kaplan_ns_theta(alpha_N, alpha_S, N_c, S_c, **_):
    return (-np.inf,
            alpha_N * np.log(N_c), alpha_N,
            alpha_S * np.log(S_c), alpha_S)


def broken_of(theta, x):
    e, a, c0, c1, d, log_f = theta.T
    return {"L_inf": np.exp(e),
            "A": np.exp(a + c0 * x),
            "c0": c0,
            "c1": c1,
            "x_break": np.exp(d + x),
            "f": np.exp(log_f)}


def broken_theta(L_inf, A, c0, c1, x_break, f, **_):
    return (np.log(L_inf),
            np.log(A), c0, c1,
            np.log(x_break), np.log(f))


def repeated_of(theta, n, d, u):
    R_D, R_N = np.exp(theta.T[5:])
    found = surface_of(theta[:, :5], n, d) | {"R_D": R_D, "R_N": R_N}
    del found["a"], found["b"]                          # no power of C gives the best size where data repeat
    return found


def repeated_theta(R_D, R_N, **surface):
    return *surface_theta(**surface), np.log(R_D), np.log(R_N)


class Form(NamedTuple):
    """One law. `natural` and `theta` are inverse to each other where the inputs are not centred.

    A parameter x_... of a law in one input x is called after that input: N_c, D_break.
    """

    model: Model
    inputs: str                                         # their names, in the order of X's rows
    names: str                                          # of theta's entries, for people
    natural: Callable[..., dict]                        # (theta (B, p), the means) -> {parameter: (B,)}
    theta: Callable[..., tuple]                         # (**parameters) -> p values of any shape
    centred: bool = True                                # is it fitted to logarithms less their means?


FORMS = {
    "surface": Form(additive, "N D", "E A alpha B beta", surface_of, surface_theta),
    "one_exponent": Form(one_exponent, "N D", "E A B eta", one_exponent_of, one_exponent_theta),
    "power": Form(additive, "x", "L_inf x_c alpha", power_of, power_theta),
    "frontier": Form(additive, "C", "L_inf log_C_c gamma", frontier_of, frontier_theta),
    "kaplan_nd": Form(kaplan_nd, "N D", "N_c alpha_N/alpha_D D_c alpha_D", kaplan_nd_of, kaplan_nd_theta),
    "kaplan_ns": Form(additive, "N S", "E N_c alpha_N S_c alpha_S", kaplan_ns_of, kaplan_ns_theta),
    "broken": Form(broken, "x", "L_inf A c0 c1 x_break f", broken_of, broken_theta),
    "repeated": Form(repeated, "N D U", "E A alpha B beta R_D R_N", repeated_of, repeated_theta,
                     centred=False),
}


def renamed(parameters: dict, old: str, new: str) -> dict:
    """`parameters` with x_c called N_c, and the like."""
    return {k.replace(f"{old}_", f"{new}_"): v for k, v in parameters.items()}


@np.errstate(over="ignore", divide="ignore")            # log 0 = -inf is a law without a floor
def loss_of(fit: dict, inputs: dict) -> Array:
    """The loss of a fit of any form, or of its draws, at `inputs` {N, D, C, S or U: values}.

    Everything broadcasts. A law in one input takes the first.
    """
    form = FORMS[fit["form"]]
    if fit.get("residuals") == "linear":               # its floor may be negative
        return loss_of(fit | {"residuals": "log", fit["floor"]: 0.0}, inputs) + fit[fit["floor"]]
    names = form.inputs.split()
    if names == ["x"]:
        names = list(inputs)[:1]
        fit = renamed(fit, names[0], "x")
    x = [np.log(inputs[name]) for name in names]
    columns = np.broadcast_arrays(*x, *form.theta(**fit))
    # Each point is a problem of its own, with one row: then draws broadcast against inputs of any shape.
    points = np.array([v.ravel() for v in columns]).T
    log_loss, _ = form.model(points[:, len(x):], points[:, :len(x), None])
    return np.exp(log_loss).reshape(columns[0].shape)[()]


def surface_loss(p: dict, N: Array, D: Array) -> Array:
    """E + A/N^alpha + B/D^beta; everything broadcasts."""
    return loss_of(p | {"form": "surface"}, {"N": N, "D": D})


def repeated_loss(p: dict, N: Array, D: Array, U: Array) -> Array:
    """Loss of N parameters trained on D tokens of which U are unique (`repeated`); everything broadcasts."""
    return loss_of(p | {"form": "repeated"}, {"N": N, "D": D, "U": U})
