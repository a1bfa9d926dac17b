"""When a run stops, and when it saves: signals, the clock, and among ranks what all of them agree on.

A signal may reach one rank only, and clocks differ, yet all must stop and save at the same step: so ranks add
up what each of them wants. That would slow fast steps down, and is done about four times a second. How many
steps those are follows from what the ranks measured together, so that all count the same. Steps that take
longer than that are watched between their micro-batches, too.
"""
import time

import torch

SECONDS = 0.25                         # from one agreement to the next, by the pace of the steps before it
STEPS = 10                             # and at most so many steps, should they become slower


class Watch:
    """Whether to stop or to save. `caught` fills with signals (basics.caught_signals); `run` is train.Run."""

    def __init__(self, run, caught=()):
        self.run = run
        self.caught = caught
        self.saved_at = time.perf_counter()
        self.agreed_at = self.saved_at
        self.every = 1                                 # steps from one agreement to the next
        self.steps = 0                                 # steps since the last one
        self.parts = 1                                 # the like in micro-batches; 0: not amid a step

    def stop(self) -> bool:
        """Whether any rank caught a signal. All ranks must ask at the same point of their work."""
        return self.sums(len(self.caught))[0] > 0

    def amid_step(self, part: int) -> bool:
        """Whether to give up the step in progress, before micro-batch `part` of it. All ranks must ask."""
        return self.parts > 0 and part > 0 and part % self.parts == 0 and self.stop()

    def after_step(self) -> tuple[bool, bool]:
        """Whether to stop, and whether a checkpoint is due. All ranks must ask after each step."""
        self.steps += 1
        if self.steps < self.every:
            return False, False
        now = time.perf_counter()
        due = now - self.saved_at > 60 * self.run.c.ckpt_minutes
        stop, due, seconds = self.sums(len(self.caught), due, now - self.agreed_at)
        if self.run.world > 1:
            per_step = max(seconds, 1e-9) / self.run.world / self.steps
            self.every = max(1, min(STEPS, int(SECONDS / per_step)))
            parts = self.run.c.gradient_accumulation_steps
            self.parts = max(1, int(SECONDS / per_step * parts)) if per_step > SECONDS else 0
        self.agreed_at = now
        self.steps = 0
        return stop > 0, due > 0

    def sums(self, *wishes: float) -> list[float]:
        """Each of `wishes` summed over ranks: what one wants, all do."""
        if self.run.world == 1:
            return list(wishes)
        wishes = torch.tensor(wishes, dtype=torch.float32, device=self.run.c.device)
        return self.run.sum_over_ranks(wishes).tolist()
