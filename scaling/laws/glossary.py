"""What each warning of a fit means and what helps, a line each: `python -m scaling.fit --explain`."""

# {words of the warning: (what it means, what helps)}, in the order of scaling/laws/health.py.
GLOSSARY = {
    # A law of N and D, or of one of them.
    "N_opt is not identified": (
        "size and data grew together, so nobody can say which of them the loss fell with",
        "train some sizes on more, others on less data; a wider range alone does not help"),
    "these runs hardly say how N_opt grows": (
        "the interval of a is so wide that most laws in use lie in it",
        "add budgets, or sizes at each budget"),
    "not at a minimum": (
        "the search stopped early, so parameters and intervals are off",
        "report it: the solver should not"),
    "starts reach this optimum": (
        "other parameters fit about as well",
        "look at the profile of E; more runs at the ends of the range"),
    "stopped at the bound": (
        "a parameter ran off to where the search ends; the data do not hold it",
        "leave the term out, or add runs"),
    "its interval reaches almost 0": (
        "the floor of the loss may be anything down to none",
        "do not extrapolate; larger, longer runs pin it"),
    "reaches almost 0, which is no fall": (
        "the loss may not fall at all along these runs",
        "widen the range, or look for what else limited them"),
    "its profile does not rise on both sides": (
        "every floor on one side fits as well as the best",
        "do not extrapolate; larger, longer runs pin it"),
    "condition number": (
        "two parameters change places without the fit noticing",
        "trust the curve inside the data, not them"),
    "standard errors, to": (
        "one run or budget alone decides the exponent",
        "check that run; repeat it with another seed"),
    "times the noise between seeds": (
        "the law misses the losses by more than chance: it, or the tuning of some sizes, is off",
        "look at the residuals by size; tune the learning rate where they stick out"),
    "tell the C of a run only to": (
        "compute depends on more than N and D, as on shape or context",
        "fit shapes of one kind together"),
    "was a limit too": (
        "along these runs the loss fell with N and with D, and the law sees one of them",
        "use the surface"),
    "the curve bends at": (
        "one power law does not hold on both sides of it",
        "use the broken law, or fit the far side alone"),
    "rows repeat their data": (
        "repeated tokens teach less than new ones, and this law counts them alike",
        "use the law 'repeated'"),
    "runs of many more epochs would pin it": (
        "too few runs repeat their data often to say what repeats are worth",
        "train for 16 epochs and more"),
    "the losses bend along": (
        "no sum of two power laws goes through these losses",
        "count N without embeddings; tune all sizes alike"),
    "the law of all others": (
        "the runs of one size, length or budget lie off all the rest",
        "check their rate, schedule and counts"),
    "are no powers of C beyond": (
        "what a parameter costs changes with size, as where the head is most of a small model",
        "plan by the surface, which knows what a run costs"),
    "not at the minimum: the objective": (
        "printed parameters fit worse than the best: rounded, or the optimiser stopped",
        "refit the data"),
    "hardly left its start": (
        "an optimiser with too loose a tolerance returns its first guess",
        "scale the objective; many starts"),
    # IsoFLOP, envelope, L(C).
    "refused": (
        "the sizes of this budget do not hold a minimum between them",
        "train sizes on the side that it names"),
    "its vertex left the sizes": (
        "with other noise this budget's best size would lie outside its sizes",
        "add sizes on both sides"),
    "degrees of freedom left": (
        "so few budgets fit a line nearly by themselves, and tell no floor",
        "train four budgets or more"),
    "leave no scatter to measure": (
        "a parabola goes through any three points, so nothing says how noisy they are",
        "five sizes per budget, or seeds"),
    "than noise explains": (
        "the optima of the budgets lie further off a line than their noise allows",
        "check the tuning by budget; N_opt may be no power of C here"),
    "the optima are out of order": (
        "the curves cross too noisily to order the sizes",
        "smooth them by validation losses, or more seeds"),
    "this is no envelope": (
        "larger models win at smaller compute: sizes are not tuned alike",
        "tune the rate of each size"),
    "loss does not fall with compute": (
        "the largest budgets did no better",
        "look for divergence, repeated data or an untuned rate"),
    "its points are two clusters": (
        "nearly all of the line spans a gap in which nothing was measured, so its slope rests on two places",
        "train at computes between them; quote no exponent until then"),
    "the slope drifts along the hull": (
        "the frontier is no straight line in log-log: there is a floor, or the start of training is in it",
        "extrapolate by the surface, or by the law with a floor that it prints"),
    "had yet to fall": (
        "losses halfway along a run are higher than those of a run that ends there",
        "use finished runs only, or a constant rate"),
    "own curve": (
        "the ends of the hull follow one run past its best point",
        "quote the slope between the runs"),
    # Arms.
    "is left out": (
        "this arm has too few runs to be compared",
        "train it at three sizes or lengths, or more"),
    "too few settings to test": (
        "whether the arms differ by a factor only cannot be asked of so few runs",
        "more sizes and budgets"),
    "the exponents are not one": (
        "an arm's worth changes with scale, so no one number holds",
        "quote the multiplier with its budget"),
    "r = s is assumed": (
        "the arm's runs do not vary size and data apart",
        "vary the tokens per parameter of that arm"),
    "in common: the law alone compares them": (
        "the arms were trained at other sizes or lengths",
        "train both on one grid"),
    # Curves.
    "off the curve of the others": (
        "well-tuned runs of one schedule fall alike; this one did not, so its loss may tell of its tuning",
        "look at its log (python -m scaling.plots out/RUN); repeat it, or leave it out before fitting"),
}


def explained() -> str:
    """The glossary as text."""
    out = ["Every warning that a fit can print: what it means, and what helps."]
    for words, (meaning, remedy) in GLOSSARY.items():
        out.append(f"\n... {words} ...\n    {meaning}\n    {remedy}")
    return "\n".join(out)
