"""One progress bar over the runs of all studies, with the time left, learned from the runs that are done."""

if __name__ == "__main__":
    raise SystemExit("studies/progress.py is a module, not a script: experiments.py uses it")

import statistics

TYPICAL_SECONDS = {"mlp": 15, "cnn": 60, "hybrid": 30, "transfer": 600}  # of a run, before one of its kind is finished


class Progress:
    """Advances `bar`, a tqdm, by a run at a time. comparisons: those that it counts; number: how many run at once."""

    def __init__(self, bar, comparisons, number):
        self.bar, self.number, self.seconds = bar, number, {}
        self.left = [comparison.runs_by_script() for comparison in comparisons]
        self.counted = set()
        bar.reset(total=sum(sum(counts.values()) for counts in self.left))

    def finished(self, job, row):
        """A run of the current study is finished, now or earlier."""
        if job.key in self.counted:
            return
        self.counted.add(job.key)
        if "seconds" in row:
            self.seconds.setdefault(job.script, []).append(row["seconds"])
        if self.left[0].get(job.script, 0) > 0:
            self.left[0][job.script] -= 1
            self.show(1)

    def end_study(self):
        """The current study is finished, perhaps with fewer runs than counted, where two variants are the same."""
        left = self.left.pop(0)
        self.counted = set()
        self.show(sum(left.values()))

    def show(self, advance):
        typical = {script: statistics.fmean(self.seconds.get(script, [guess])) for script, guess in TYPICAL_SECONDS.items()}
        left = sum(typical[script] * count for counts in self.left for script, count in counts.items()) / self.number
        words = f"about {left / 60:.0f} min left" if left >= 60 else "less than a minute left"
        self.bar.set_postfix_str(words, refresh=False)
        self.bar.update(advance)
