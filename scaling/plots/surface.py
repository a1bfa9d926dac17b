"""The surface L(N, D): its frontier, its lines of equal loss, and how far its fit can be trusted."""
import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import minimize

from scaling.laws import forms, models
from scaling.laws.solver import DELTA, Array, huber
from scaling.plots.colors import ANY_SIZE, BLACK, BLUE, LOW_IS_DARK, RED, SKY
from scaling.plots.forecasts import forecast_marks
from scaling.plots.frame import (
    axes,
    color_bar,
    draw_curves,
    draw_law,
    end_with_grid,
    hold_points,
    legend_below,
    log_ticks,
    reach,
    title_of,
)
from scaling.plots.study import A_LABEL, C_LABEL, Study


def frontier(study: Study, law: dict) -> Figure:
    """Loss against C = 6 N D: runs, curves, the surface's compute-optimal loss, forecasts, what came."""
    curves, new = study.curves, study.forecasts
    C = 6 * study.N * study.D
    law = of_6nd(law, C)
    C_new = 6 * new["params"] * new["tokens"]
    everywhere = np.append(C, C_new)
    ax = axes(C_LABEL["6nd"], f"loss ({study.unit})")
    colors = color_bar(ax, np.append(study.N, new["params"]), study.n_label)
    losses = np.concatenate([study.L, *(new[k] for k in ("predicted", "lo95", "hi95", "measured"))])
    hold_points(ax, everywhere, losses[np.isfinite(losses)])                  # not every forecast has come
    if curves:
        draw_curves(ax, curves, 6 * curves["N"] * curves["D"], colors, linewidth=0.5, alpha=0.4, zorder=0)
        ax.plot([], [], color=ANY_SIZE, linewidth=0.5, label=f"{curves['label']} while training")
    ax.scatter(C, study.L, s=9, c=colors.to_rgba(study.N), linewidth=0, zorder=2)
    ax.plot([], [], "o", color=ANY_SIZE, markersize=3, mew=0, label="validation loss of a run at its end")
    x = reach(everywhere)
    draw_law(ax, x, law, lambda p: forms.surface_optimum(p, x)[2], law["range"]["C"],
             "loss at the best size")
    if len(C_new):
        forecast_marks(ax, C_new, new)
    return legend_below(ax)


def of_6nd(law: dict, C: Array) -> dict:
    """The surface `law` as of budgets C = 6 N D, whatever its table counted."""
    if law.get("cost"):
        law = law | {"cost": None, "range": law["range"] | {"C": [C.min(), C.max()]}}
    return law


def surface_contours(study: Study, law: dict) -> Figure:
    """Lines of equal loss over C and N, faint beyond the D of the runs; the efficient frontier N_opt(C)."""
    C = 6 * study.N * study.D
    law = of_6nd(law, C)
    x = reach(C, 2)
    y = reach(study.N, 2)
    N = y[:, None]
    D = x / (6 * N)
    loss = forms.surface_loss(law, N, D)
    inside = (D > study.D.min() / 1.5) & (D < study.D.max() * 1.5)
    levels = np.geomspace(loss[inside].min(), loss[inside].max(), 12)
    ax = axes(C_LABEL["6nd"], study.n_label, title_of(law))
    ax.contour(x, y, loss, levels, linewidths=0.6, alpha=0.2, **LOW_IS_DARK)
    ax.contour(x, y, np.where(inside, loss, np.nan), levels, linewidths=0.9, **LOW_IS_DARK)
    end_with_grid(ax, x, y)
    draw_law(ax, x, law, lambda p: forms.surface_optimum(p, x)[0], law["range"]["C"],
             "best size", RED)
    ax.plot(C, study.N, "o", color=BLACK, markersize=2, zorder=3, label="runs")
    ax.plot([], [], color=ANY_SIZE, linewidth=0.9,
            label=f"lines of equal loss ({study.unit});\nfaint: fewer or more tokens than in any run")
    label_contours(ax, study, law, levels[1:-1:2])
    return legend_below(ax)


def label_contours(ax, study: Study, law: dict, levels: Array) -> None:
    """Write the loss on its line, at the point farthest from the runs, the best sizes and other labels."""
    x = np.geomspace(*ax.get_xlim(), 200)
    y = np.geomspace(*ax.get_ylim(), 80)[4:-4]
    best = forms.surface_optimum(law, x)[0]
    taken = [*np.log([6 * study.N * study.D, study.N]).T, *np.log([x, best]).T]
    scale = np.log([x[-1] / x[0], y[-1] / y[0]])
    for level in levels:
        at = np.array([np.interp(-level, -forms.surface_loss(law, N, x / (6 * N)), x) for N in y])
        D = at / (6 * y)
        shown = (at > x[12]) & (at < x[-12]) & (D > study.D.min()) & (D < study.D.max())
        if not shown.any():
            continue
        spots = np.log([at[shown], y[shown]]).T
        room = np.linalg.norm((spots[:, None] - taken) / scale, axis=2).min(1)
        spot = spots[room.argmax()]
        taken.append(spot)
        ax.text(*np.exp(spot), f"{level:.2f}", fontsize=6, ha="center", va="center",
                bbox={"color": "white", "pad": 0.5})


def residuals(study: Study, law: dict) -> Figure:
    """Measured over fitted loss against compute, coloured by size: a pattern means a wrong form."""
    off = 100 * (study.L / forms.surface_loss(law, study.N, study.D) - 1)
    noise = 196 * law["noise"]
    highest = 1.1 * max(noise, np.abs(off).max())
    ax = axes(C_LABEL["6nd"], "measured / fitted loss - 1 (%)")
    colors = color_bar(ax, study.N, study.n_label)
    ax.axhline(0, color=BLACK, linewidth=0.6)
    ax.axhspan(-noise, noise, color=BLACK, alpha=0.12, linewidth=0, label="1.96 residual standard deviations")
    ax.scatter(6 * study.N * study.D, off, s=12, c=colors.to_rgba(study.N), linewidth=0)
    ax.plot([], [], "o", color=ANY_SIZE, mew=0, label="a run")
    ax.set(xscale="log", ylim=(-highest, highest))
    log_ticks(ax.xaxis)
    return legend_below(ax)


def bootstrap_cloud(study: Study, law: dict) -> Figure | None:
    """Exponent a and irreducible loss E of each bootstrap resample: what one fit hides."""
    if not law["ci"]:
        return None
    draws = forms.draws_of(law)
    a, E = law["a"], law["E"]
    ax = axes(A_LABEL, f"E, irreducible loss ({study.unit})", f"{len(draws['a'])} resamples of the runs")
    ax.plot(draws["a"], draws["E"], "o", color=SKY, markersize=1.5, alpha=0.5, mew=0,
            label="the law of a resample")
    ax.plot(law["ci"]["a"], [E, E], color=BLACK, linewidth=1)
    ax.plot([a, a], law["ci"]["E"], color=BLACK, linewidth=1)
    ax.plot(a, E, "o", color=RED, markersize=4, label="the law of all runs; lines: 95 % intervals")
    return legend_below(ax)


def profile_of_E(study: Study, law: dict) -> Figure | None:
    """How much worse the surface fits with E held elsewhere and all else refitted, and which E 95 % allow."""
    if "profile_E" not in law:
        return None
    profile = law["profile_E"]
    grid, cutoff = profile["grid"], profile["cutoff"]
    low = profile["lo"] or grid[0]                      # None: the profile does not rise on this side
    high = profile["hi"] or grid[-1]
    unbounded = [side for side, end in (("below", "lo"), ("above", "hi")) if not profile[end]]
    allowed = f"{low:.3f} to {high:.3f}"
    if unbounded:
        allowed = "not bounded " + " or ".join(unbounded)
    ax = axes(f"E held at ({study.unit})", "deviance from the best fit")
    ax.plot(grid, profile["deviance"], color=BLUE)
    ax.axhline(cutoff, color=BLACK, linestyle=":", linewidth=0.8, label="95 % cutoff (bootstrap)")
    ax.axvspan(low, high, color=BLUE, alpha=0.15, linewidth=0, label=f"allowed: {allowed}")
    ax.plot(law["E"], 0, "o", color=RED, markersize=4, label=f"best fit: {law['E']:.3f}")
    ax.set_ylim(-0.3 * cutoff, 8 * cutoff)
    return legend_below(ax)


def early_stop(N: Array, D: Array, L: Array, start: dict) -> Figure:
    """How far above its minimum the surface's objective is, at each iteration of L-BFGS-B from `start`.

    The objective is the mean Huber loss, minimised at scipy's default tolerances, which is how it goes wrong,
    and at tight ones; `start` is {E, A, B, alpha, beta}.
    """
    X = np.log([N, D])
    y = np.log(L)
    least = forms.fit_surface(N, D, L, bootstrap=0)["objective"] / len(y)
    first = np.array(models.surface_theta(**start))

    def objective(theta):
        value, slope = models.additive(theta[None], X)
        r = y - value[0]
        return huber(r).mean(), -slope[0] @ np.clip(r, -DELTA, DELTA) / len(y)
    ax = axes("iteration of L-BFGS-B", "objective / its minimum - 1")
    for name, color, options in (("default", RED, {}), ("tight", BLUE, {"ftol": 1e-15, "gtol": 1e-12})):
        path = [first]
        end = minimize(objective, first, jac=True, method="L-BFGS-B", options=options, callback=path.append)
        excess = np.array([objective(theta)[0] for theta in path]) / least - 1
        says = "success" if end.success else "failure"
        alpha, beta = end.x[2], end.x[4]
        found = rf"$\alpha$ = {alpha:.3f}, $\beta$ = {beta:.3f}, $a$ = {beta / (alpha + beta):.3f}"
        label = f"{name} tolerances: \u201c{says}\u201d, {found}"
        ax.semilogy(np.maximum(excess, 1e-9), "-X", color=color, markersize=5, markevery=[-1], label=label)
    ax.lines[0].set_zorder(3)                           # the two paths are one until the first stops
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1))
    return ax.figure
