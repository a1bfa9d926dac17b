"""What a goal asks for: N and D from a budget, a size, a number of tokens or a loss, by a law.

A law is a fit's surface or frontier, or one of PUBLISHED. Its C is 6 N D, or what its table counts (`cost`).
"""
import math

from scipy.optimize import brentq, minimize_scalar

from runtime.basics import UserError
from scaling.laws import counts, forms

# What the laws were fitted on: Hoffmann et al. 2022, abstract and section 3.2; Kaplan et al. 2020, section 3.
HOFFMANN_RANGE = {"C": [6e18, 3e21]}
PRINTED = {"form": "surface", "params": "total", "boot": {}, "runs": {}}
PUBLISHED = {
    # Before rounding (Besiroglu et al. 2024): the exponents as printed, .34 and .28, move N_opt by a sixth.
    "hoffmann": PRINTED | {"E": math.exp(0.5267228), "A": math.exp(6.0073404), "alpha": 0.33917084,
                           "B": math.exp(6.0179186), "beta": 0.2849083, "range": HOFFMANN_RANGE,
                           "source": "Hoffmann et al. 2022, approach 3, unrounded"},
    "besiroglu": PRINTED | {"E": 1.8172, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658,
                            "range": HOFFMANN_RANGE, "source": "Besiroglu et al. 2024"},
    "muennighoff": PRINTED | forms.C4 | {"range": {"C": [4e15, 1e22]},
                                         "source": "Muennighoff et al. 2023, C4"},
    # N_opt = 1.3e9 C^.73 and L = (3.1e8/C)^.050, C in PF-days (Kaplan et al. 2020, figure 14 and eq. 1.3).
    "kaplan": PRINTED | {"form": "frontier", "params": "non_embedding", "L_inf": 0.0, "gamma": 0.050,
                         "log_C_c": math.log(3.1e8 * counts.PF_DAY),
                         "log_k": math.log(1.3e9 / counts.PF_DAY ** 0.73), "a": 0.73,
                         "range": {"C": [1e11, 2e20]}, "source": "Kaplan et al. 2020, compute-efficient"},
}


def require_surface(law: dict) -> None:
    """Raise UserError for a frontier, which has no loss of any N and D but its own."""
    if law["form"] == "frontier":
        raise UserError("this law knows only the best run of each budget: give --flops, --params, --tokens "
                        "or --loss alone, or take a surface such as hoffmann or besiroglu")


def loss_at(law: dict, N: float, D: float) -> float:
    """Loss of N parameters after D tokens, of which at most law["unique"], if given, differ. UserError."""
    require_surface(law)
    if "unique" in law:
        return forms.repeated_loss(law, N, D, law["unique"])
    return forms.surface_loss(law, N, D)


def best(law: dict, C: float) -> tuple[float, float, float]:
    """(N, D, loss) of the least loss for C FLOPs. Raises UserError."""
    optimum = forms.power_optimum if law["form"] == "frontier" else forms.surface_optimum
    N, D, loss = optimum(law, C)
    if D > law.get("unique", math.inf):
        require_surface(law)
        N, D, _, loss = forms.repeated_optimum(law, C, law["unique"])
    return float(N), float(D), float(loss)


def solve(f, target: float, goal: str) -> float:
    """The x from 1 to 1e40 where the monotonic f is `target`. Raises UserError without one."""
    def gap(log_x):
        return math.log(f(math.exp(log_x)) / target)
    if gap(0.0) * gap(92.0) > 0:
        raise UserError(f"{goal} cannot be reached like this; without limit it would come to "
                        f"{f(math.exp(92.0)):.4g}")
    return math.exp(brentq(gap, 0.0, 92.0, xtol=1e-12))


def params_for(law: dict, D: float, C: float) -> float:
    """The N whose training on D tokens takes C. Raises UserError."""
    return solve(lambda n: forms.flops_of(law, n, D), C, f"{D:.3g} tokens for {C:.3g} FLOPs")


def require_agreement(law: dict, C: float, N: float, D: float) -> None:
    """Raise UserError where N parameters on D tokens do not take C FLOPs, to a percent."""
    cost = float(forms.flops_of(law, N, D))
    if abs(math.log(cost / C)) > 0.01:
        count = "" if law.get("cost") else "6 N D = "
        raise UserError(
            f"{N:.3g} parameters on {D:.3g} tokens take {count}{cost:.2g} FLOPs, {cost / C:.2g} "
            f"times the {C:.2g} given: these buy {forms.tokens_of(law, N, C):.3g} tokens for {N:.3g} "
            f"parameters, or {params_for(law, D, C):.3g} parameters for {D:.3g} tokens; N = D = sqrt(C/6) "
            f"would be {math.sqrt(C / 6):.3g} of each, one token per parameter; give two of the three")


def solve_goal(law: dict, C: float, N: float, D: float, L: float) -> tuple[float, float]:
    """(N, D) from those of C (FLOPs), N, D and L (loss) that are not 0: one, or two. Raises UserError."""
    if not (C or N or D or L):
        raise UserError("nothing to plan for: give --flops, --gpu_hours, --loss, --params or --tokens")
    if C and N and D:
        require_agreement(law, C, N, D)
    if L and (C or N and D):
        raise UserError("these goals say the same twice: N and D follow from two of flops, params and "
                        "tokens, and the loss from N and D; give fewer")
    loss = f"a loss of {L:.4g}"
    if L and N:
        D = solve(lambda d: loss_at(law, N, d), L, loss)
    elif L and D:
        N = solve(lambda n: loss_at(law, n, D), L, loss)
    elif L:
        C = solve(lambda c: best(law, c)[2], L, loss)
    elif not (C or D):
        C = solve(lambda c: best(law, c)[0], N, f"a budget whose best run has {N:.3g} parameters")
    elif not (C or N):
        C = solve(lambda c: best(law, c)[1], D, f"a budget whose best run takes {D:.3g} tokens")
    if not N:
        N = params_for(law, D, C) if D else best(law, C)[0]
    return N, D or forms.tokens_of(law, N, C)


def lifelong(law: dict, N: float, D: float, served: float) -> float:
    """FLOPs of training and of `served` tokens, each a third of one in training: 6 N D + 2 N served."""
    return float(forms.flops_of(law, N, D)) * (1 + served / (3 * D))


def serving_optimum(law: dict, loss: float, served: float) -> tuple[float, float]:
    """(N, D) of the fewest FLOPs to reach `loss` and serve `served` tokens (Sardana et al. 2024)."""
    alpha = law["alpha"]
    beta = law["beta"]
    excess = loss - law["E"]

    def at(share):                                     # of the excess that is A/N^alpha; B/D^beta is the rest
        N = (law["A"] / (share * excess)) ** (1 / alpha)
        return N, (law["B"] / ((1 - share) * excess)) ** (1 / beta)

    def log_cost(share):
        return math.log(lifelong(law, *at(share), served))
    least = 0.5 * beta / (alpha + beta)                # half of the compute-optimal model's, for C = 6 N D
    found = minimize_scalar(log_cost, bounds=(least, 1), method="bounded", options={"xatol": 1e-8})
    return at(found.x)
