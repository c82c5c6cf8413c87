"""What is next to be measured on a GPU, in the order in which it matters, in pieces of minutes.

    python benchmarks/gpu.py --out runs/gpu --minutes 9

The same command goes on where the last one was cut: training resumes to the bit, and what is done stays done. Of each
part, OUT/<part>.log has what it printed, and OUT/done.json the seconds it took. Which parts there are: --list.
`--flags "--preset smoke"` puts another preset in place of all, as for a try without a GPU.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
GRACE = 40  # seconds that a part has to save what it can

# For the compact network, all epochs on 45,000 images: shorter trials misled. Several at once, since it fills no GPU.
# The first of each is the preset's own value.
TAUGHT = ("--teacher-weight 0.9", "--teacher-temperature 2", "--teacher-weight 0.7", "--plateau-threshold 0.03")
ALONE = ("--batch-size 128", "--batch-size 64", "--plateau-factor 0.5 --plateau-cooldown 1", "--ema-decay 0.9995")


def parts(out: Path, flags: list[str], data: list[str]) -> dict[str, list[str]]:
    """The words of each part's command after `python`, in their order; OUT/teacher is a run directory."""
    preset = flags[flags.index("--preset") + 1] if "--preset" in flags else "resnet18"
    small = flags if "--preset" in flags else ["--preset", "compact", *flags]
    held_out = [*data, "--val-size", "200" if preset == "smoke" else "5000", "--no-test"]

    def sweep(name: str, trials: tuple[str, ...], *more: str) -> list[str]:
        chosen = [word for trial in trials for word in ("--trial", trial)]
        words = ["-m", "cifar_flax", "sweep", *small, *more, *held_out, *chosen, "--at-once", str(len(trials))]
        return [*words, "--out", str(out / name)]

    return {
        "teacher": ["train.py", *flags, "--label-smoothing", "0", *held_out, "--out", str(out / "teacher")],
        "taught": sweep("taught", TAUGHT, "--teacher", str(out / "teacher")),
        "alone": sweep("alone", ALONE),
        **{
            f"speed-{what}": ["benchmarks/speed.py", what, "--preset", preset, *data, "--out", f"{out}/{what}.json"]
            for what in ("step", "epoch", "forward", "maps")
        },
    }


def run(words: list[str], log: Path, seconds: float) -> int:
    """Runs a part, and ends it gently after so many seconds; its exit code."""
    if words[0] == "train.py" and (Path(words[words.index("--out") + 1]) / "config.json").exists():
        words = [*words, "--resume"]
    command = ["timeout", "--foreground", f"--kill-after={GRACE}", f"{seconds}", sys.executable, *words]
    with open(log, "a") as file:
        print(f"$ python {shlex.join(words)}", file=file, flush=True)
        return subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--minutes", type=float, default=9.0, help="end after so many (9)")
    parser.add_argument("--flags", type=shlex.split, default=["--epochs", "40"], help="of train.py (--epochs 40)")
    parser.add_argument("--data-dir", type=Path, help="where CIFAR-10 is kept and looked for")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts alone")
    parser.add_argument("--list", action="store_true", help="print the parts and exit")
    flags = parser.parse_args()
    out, end = flags.out.resolve(), time.monotonic() + 60 * flags.minutes - GRACE
    data = [] if flags.data_dir is None else ["--data-dir", str(flags.data_dir.resolve())]
    todo = parts(out, flags.flags, data)
    if unknown := sorted(set(flags.only or []) - set(todo)):
        parser.error(f"--only {unknown[0]} is no part: expected some of {', '.join(todo)}")
    if flags.list:
        print("\n".join(f"{name}: python {shlex.join(words)}" for name, words in todo.items()))
        return 0
    out.mkdir(parents=True, exist_ok=True)
    done_file = out / "done.json"
    done = json.loads(done_file.read_text()) if done_file.exists() else {}
    for name in flags.only or todo:
        if name in done:
            continue
        if (left := end - time.monotonic()) < 1:
            print(f"{name}: not begun, the time is over; the same command goes on")
            return 1
        start = time.monotonic()
        code = run(todo[name], out / f"{name}.log", left)
        taken = round(time.monotonic() - start, 1)
        print(f"{name}: {'done' if code == 0 else f'exit code {code}'} after {taken} s", flush=True)
        if time.monotonic() >= end and code:
            print("The time is over: the same command goes on")
            return 1
        if code == 0:
            done[name] = taken
            done_file.write_text(json.dumps(done, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
