#!/usr/bin/env python3
"""Checks that the loom models of src/cross_shard are worth something.

In a copy of the tree it weakens one thing at a time, and wants at least one model to fail for each:
  * every memory ordering of ours that is not Relaxed becomes Relaxed (found by itself, so none is forgotten);
  * the steps listed below are dropped, reordered, or torn from one atomic step into two.
Prints a table; exits with 1 if anything survives. What cannot be killed needs the words `not modelled:` and
the reason in a comment on the line above, and is listed as justified.

usage: scripts/weaken.py [part of a name ...]
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "target" / "weaken"
TREE = WORK / "tree"
SECONDS_MAX = 600
# Models and tests, and the queue that models run on: not ours to weaken.
NOT_OURS = {"models.rs", "stress.rs", "test_kit.rs", "queue.rs"}

STEPS = [
    # name, file, what it says, what it says instead
    ("gate: sender enters without being counted at once", "inbox.rs",
     "self.gate.fetch_add(ONE_SENDER, Ordering::Relaxed) & CLOSED",
     "({ let gate = self.gate.load(Ordering::Relaxed); self.gate.store(gate + ONE_SENDER, Ordering::Relaxed); gate }) & CLOSED"),
    ("gate: sender looks, then enters", "inbox.rs",
     "self.gate.fetch_add(ONE_SENDER, Ordering::Relaxed) & CLOSED",
     "({ let gate = self.gate.load(Ordering::Relaxed); self.gate.fetch_add(ONE_SENDER, Ordering::Relaxed); gate }) & CLOSED"),
    ("gate: sender ignores that it is closed", "inbox.rs",
     "Ordering::Relaxed) & CLOSED == 0 {", "Ordering::Relaxed) & CLOSED == 0 || true {"),
    ("gate: refused sender does not leave", "inbox.rs",
     "        self.gate.fetch_sub(ONE_SENDER, Ordering::Relaxed);\n        None", "        None"),
    ("gate: sender looks for the sleeper, then publishes", "inbox.rs",
     "        inbox.queue.push(envelope);\n", "        let asleep = inbox.gate.load(Ordering::Acquire) & SLEEPING;\n        inbox.queue.push(envelope);\n",
     "Ordering::Release) & SLEEPING != 0\n", "Ordering::Release) & 0 != 0 || asleep != 0\n"),
    ("gate: sender leaves, then publishes", "inbox.rs",
     "        inbox.queue.push(envelope);\n", "",
     "        inbox.gate.fetch_sub(ONE_SENDER, Ordering::Release) & SLEEPING != 0\n",
     "        let asleep = inbox.gate.fetch_sub(ONE_SENDER, Ordering::Release) & SLEEPING != 0;\n        inbox.queue.push(envelope);\n        asleep\n"),
    ("gate: sender leaves in two steps", "inbox.rs",
     "inbox.gate.fetch_sub(ONE_SENDER, Ordering::Release) & SLEEPING",
     "({ let gate = inbox.gate.load(Ordering::Relaxed); inbox.gate.store(gate - ONE_SENDER, Ordering::Release); gate }) & SLEEPING"),
    ("wake: only looks", "inbox.rs",
     "self.gate.fetch_and(!SLEEPING, Ordering::Release) & SLEEPING", "self.gate.load(Ordering::Acquire) & SLEEPING"),
    ("wake: takes the mark in two steps", "inbox.rs",
     "self.gate.fetch_and(!SLEEPING, Ordering::Release) & SLEEPING",
     "({ let gate = self.gate.load(Ordering::Relaxed); self.gate.store(gate & !SLEEPING, Ordering::Release); gate }) & SLEEPING"),
    ("wake: does not write", "inbox.rs", "            self.waker.wake();\n", ""),
    ("sleep: marks in two steps", "inbox.rs",
     "self.gate.fetch_or(SLEEPING, Ordering::Acquire);",
     "{ let gate = self.gate.load(Ordering::Acquire); self.gate.store(gate | SLEEPING, Ordering::Relaxed); }"),
    ("sleep: unmarks in two steps", "inbox.rs",
     "self.gate.fetch_and(!SLEEPING, Ordering::Relaxed) & SLEEPING",
     "({ let gate = self.gate.load(Ordering::Relaxed); self.gate.store(gate & !SLEEPING, Ordering::Relaxed); gate }) & SLEEPING"),
    ("sleep: does not look again", "endpoint.rs",
     "        if local.inbox().is_empty() {\n            bump(&local.counters().sleeps, 1);", "        if true {\n            bump(&local.counters().sleeps, 1);"),
    ("sleep: looks, then marks", "endpoint.rs",
     "        local.inbox().mark_sleeping();\n        if local.inbox().is_empty() {",
     "        let empty = local.inbox().is_empty();\n        local.inbox().mark_sleeping();\n        if empty {"),
    ("sleep: stays marked", "endpoint.rs",
     "    pub(crate) fn finish_sleep(&self) {\n        self.local.inbox().mark_awake();", "    pub(crate) fn finish_sleep(&self) {"),
    ("close: in two steps", "inbox.rs",
     "self.gate.fetch_or(CLOSED, Ordering::Relaxed);",
     "{ let gate = self.gate.load(Ordering::Relaxed); self.gate.store(gate | CLOSED, Ordering::Relaxed); }"),
    ("close: does not wait for senders", "inbox.rs",
     "while self.gate.load(Ordering::Acquire) >= ONE_SENDER {", "if self.gate.load(Ordering::Acquire) >= ONE_SENDER {"),
    ("close: no final drain", "endpoint.rs", "delivery.run(context, usize::MAX);", ""),
    ("close: own calls are not answered", "local.rs", "        self.calls.stop();\n", ""),
    ("loss: what was taken is not turned away", "endpoint.rs", "            self.local.turn_away();\n", ""),
    ("post: no wake", "mesh.rs", "        if entered.push(Batch {", "        if false & entered.push(Batch {"),
    ("foreign call: no wake", "mesh.rs", "            if entered.push(Batch {", "            if false & entered.push(Batch {"),
    ("publish: no wake", "local.rs", "if outbox.wake_owed.take() {", "if outbox.wake_owed.take() && false {"),
    ("reply: no wake is owed", "local.rs", "if asleep && brings_replies {", "if asleep && brings_replies && false {"),
    ("withdrawal: no flag", "withdrawal.rs", "        flags[at].store(true, Ordering::Relaxed);\n", ""),
    ("withdrawal: not counted", "withdrawal.rs", "        self.raised.fetch_add(1, Ordering::Relaxed);\n", "        let _ = &self.raised;\n",
     "        self.raised.fetch_sub(1, Ordering::Relaxed);\n", ""),
    ("withdrawal: nobody asks", "delivery.rs", "if !site.withdrawals.is_raised(slot.key().index) {", "if true {"),
    ("withdrawal: the flag stays up", "withdrawal.rs",
     "        flags[at].store(false, Ordering::Relaxed);\n        self.raised.fetch_sub(1, Ordering::Relaxed);\n", "        let _ = &flags[at];\n"),
    ("credit: does not come back", "calls.rs", "for waker in (0..count)", "for waker in (0..count * 0)"),
    ("foreign answer: nobody is woken", "foreign.rs", "                self.answered.notify_one();\n", ""),
    ("foreign answer: no task is woken", "foreign.rs", "                    waker.wake();\n", "                    drop(waker);\n"),
    ("foreign answer: no watcher is woken", "foreign.rs", "for waker in [watcher, caller]", "for waker in [watcher.filter(|_| false), caller]"),
    ("foreign call: dropped without a word to its watcher", "foreign.rs", "                watcher.wake();\n", "                drop(watcher);\n"),
    ("foreign answer: dropped without a word", "foreign.rs", "        self.finish(Err(CallError::Stopped));\n", ""),
]


def ours():
    yield ROOT / "src" / "sync.rs"
    for path in sorted((ROOT / "src" / "cross_shard").glob("*.rs")):
        if path.name not in NOT_OURS:
            yield path


def mutants():
    """(name, file, new text, justification or None)"""
    for path in ours():
        path = TREE / path.relative_to(ROOT)
        text = path.read_text()
        end = text.find("#[cfg(all(test, not(loom)))]\nmod tests")
        for found in re.finditer(r"Ordering::(Acquire|Release|AcqRel|SeqCst)\b", text[: end if end >= 0 else None]):
            line = text.count("\n", 0, found.start())
            lines = text.splitlines()
            function = next(m.group(1) for l in reversed(lines[: line + 1]) if (m := re.search(r"\bfn (\w+)", l)))
            comment = lines[line - 1]
            reason = comment.split("not modelled:")[1].strip() if "not modelled:" in comment else None
            changed = text[: found.start()] + "Ordering::Relaxed" + text[found.end():]
            yield f"{path.name} {function}: {found.group(1)} -> Relaxed", path, changed, reason
    for name, file, *pairs in STEPS:
        path = TREE / "src" / "cross_shard" / file
        text = path.read_text()
        for old, new in zip(pairs[::2], pairs[1::2]):
            count = text.count(old)
            if count == 0:
                sys.exit(f"weaken: {name!r}: {file} no longer says {old!r}")
            text = text.replace(old, new, 1)
        yield name, path, text, None


def copy_tree():
    TREE.mkdir(parents=True, exist_ok=True)
    for name in ("Cargo.toml", "Cargo.lock"):
        shutil.copy2(ROOT / name, TREE / name)
    # Cargo.toml may name targets elsewhere; they are not built, but must exist.
    for folder in ("src", "benches", "examples", "tests"):
        shutil.rmtree(TREE / folder, ignore_errors=True)
        if (ROOT / folder).exists():
            shutil.copytree(ROOT / folder, TREE / folder, ignore=shutil.ignore_patterns("target"))
    if (ROOT / "README.md").exists():
        shutil.copy2(ROOT / "README.md", TREE / "README.md")


def cargo(*arguments):
    environment = dict(os.environ, RUSTFLAGS="--cfg loom -A warnings", RUST_BACKTRACE="0",
                       CARGO_TARGET_DIR=str(WORK / "target"))
    command = ["cargo", "test", "--quiet", "--release", "--lib", *arguments]
    try:
        done = subprocess.run(command, cwd=TREE, env=environment, timeout=SECONDS_MAX,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.returncode, done.stdout
    except subprocess.TimeoutExpired as expired:
        return "timeout", (expired.stdout or b"").decode(errors="replace")


def run_models():
    """None if all pass, else which model fails first, and how."""
    code, output = cargo("--no-run")
    if code != 0:
        sys.exit(f"weaken: does not build:\n{output[-3000:]}")
    code, output = cargo("cross_shard::models", "--", "--test-threads=1", "--nocapture")
    if code == 0:
        if "0 passed" in output:
            sys.exit("weaken: no model was run")
        return None
    if code == "timeout":
        return "timeout"
    first = re.search(r"thread 'cross_shard::models::(\w+)'.* panicked at .*\n(.*)", output)
    return f"{first.group(1)}: {first.group(2)[:60]}" if first else f"exit {code}"


def main():
    wanted = sys.argv[1:]
    copy_tree()
    if (failing := run_models()) is not None:
        sys.exit(f"weaken: the models fail as they are: {failing}")
    rows, survivors = [], 0
    for name, path, text, reason in list(mutants()):
        if wanted and not any(part in name for part in wanted):
            continue
        original = path.read_text()
        started = time.monotonic()
        path.write_text(text)
        try:
            killed_by = run_models()
        finally:
            path.write_text(original)
        if killed_by is None and reason is None:
            survivors += 1
        verdict = killed_by or (f"JUSTIFIED {reason}" if reason else "SURVIVES")
        rows.append((name, verdict))
        print(f"{time.monotonic() - started:5.0f} s  {name:58} {verdict}", flush=True)
    justified = sum(verdict.startswith("JUSTIFIED") for _, verdict in rows)
    killed = len(rows) - survivors - justified
    print(f"\n{len(rows)} weakened, {killed} killed, {justified} justified, {survivors} survive")
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()
