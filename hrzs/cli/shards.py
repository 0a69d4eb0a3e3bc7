"""`--shard K/N`, `--merge`, and the same under torchrun: which part of the work is for this process."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from hrzs.cli import console
from hrzs.errors import UsageError, few
from hrzs.evaluation.shards import Shard
from hrzs.torchrun import place

ShardOption = Annotated[str | None, typer.Option("--shard", metavar="K/N", help="Only share K of N of the images; run again, it goes on by itself.")]  # fmt: skip
MergeOption = Annotated[bool, typer.Option("--merge", help="Put together what all shards have done.")]

# Between two looks at the files of the other shards.
_SECONDS = 0.5
# So many shards are named in one message.
_NAMED = 8


@dataclass(frozen=True)
class Role:
    """What this process is for: everything, one shard, the merge, or, as rank 0 of torchrun, first a shard and then the merge.

    Args:
        words: the arguments of this call.
    """

    shard: Shard | None
    merges: bool
    by_torchrun: bool
    words: Sequence[str]

    @classmethod
    def of(cls, context: typer.Context, shard: str | None, merge: bool) -> Role:
        """From the options, or from the environment that torchrun sets: rank K is shard K + 1, and rank 0 merges too.

        Raises:
            UsageError: they contradict each other, or make no sense.
        """
        words, here = context.obj or (), place()
        given = "--merge" if merge else f"--shard {shard}"
        if here.size == 1:
            if shard is not None and merge:
                raise UsageError(f"--shard {shard} with --merge: first run all shards, then merge")
            return cls(None if shard is None else Shard.parse(shard), merge, False, words)
        if shard is not None or merge:
            raise UsageError(f"{given} with WORLD_SIZE {here.size}: under torchrun each process is a shard by itself, and "
                             f"the first one merges; leave {given} out")  # fmt: skip
        return cls(Shard(here.rank + 1, here.size), here.rank == 0, True, words)

    @property
    def is_divided(self) -> bool:
        """Is this process one of several?"""
        return self.shard is not None or self.merges

    def __str__(self) -> str:
        if self.by_torchrun:
            return f"torchrun with {place().size} processes"
        return "--merge" if self.shard is None else f"--shard {self.shard}"

    def command(self, instead: str) -> str:
        """This call with ``instead`` in place of --shard or --merge."""
        words, left = [], iter(self.words)
        for word in left:
            if word == "--shard":
                next(left, None)
            elif word != "--merge" and not word.startswith("--shard="):
                words.append(word)
        return f"hrzs {shlex.join(words)} {instead}"

    def check(self, begun: Sequence[Shard], where: str) -> None:
        """Look at what other shards have ``begun`` of the same work.

        Raises:
            UsageError: they divide it otherwise, or this process knows nothing of shards.
        """
        if begun and not self.is_divided:
            raise UsageError(f"{where}: beside it is what shards have done; put it together with "
                             f"{self.command('--merge')}, or delete {begun[0].name} and the others")  # fmt: skip
        divisions = sorted({shard.of for shard in begun})
        if len(divisions) > 1 or (self.shard and divisions and divisions != [self.shard.of]):
            raise UsageError(f"{self}: {where} was begun in {' and in '.join(map(str, divisions))} shards; go on with "
                             f"as many, or delete what they have done (*shard-*-of-{divisions[0]}*)")  # fmt: skip

    def finished(self, begun: Sequence[Shard], is_finished: Callable[[Shard], bool], where: str) -> list[Shard]:
        """All shards, once they are finished: a rank waits for the others (if one fails, torchrun ends them all).

        Raises:
            UsageError: --merge, and some are not; the message has the commands that finish them.
        """
        whole = (self.shard or (begun[0] if begun else Shard(1, 1))).all
        said = False
        while missing := [shard for shard in whole if not is_finished(shard)]:
            if not begun and not self.shard:
                raise UsageError(f"--merge: there are no shards of {where}; run {self.command('--shard K/N')} for each "
                                 "K from 1 to N")  # fmt: skip
            if not self.shard:
                states = [
                    f"{shard} is not finished" if shard in begun else f"{shard} was not begun" for shard in missing
                ]
                commands = [self.command(f"--shard {shard}") for shard in missing[:_NAMED]]
                raise UsageError("\n  ".join([f"--merge: of {where} shard {few(states, _NAMED)}; run", *commands]))
            if not said:
                console.note(f"waiting for shard {few([*map(str, missing)], _NAMED)} of {where}")
                said = True
            time.sleep(_SECONDS)
        return whole
