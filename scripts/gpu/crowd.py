"""The same requests alone and among neighbours: what each was answered, to the bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from chairlift.shared.sampling_params import SamplingParams
from chairlift.worker.engine import Engine

from .engines import sequence_of

SEED = 9
NUM_LOGPROBS = 5  # of the likeliest, beside the token's own
KINDS = {"greedy": 0.0, "sampled": 1.0}  # and their temperatures


@dataclass(frozen=True, slots=True)
class Member:
    """A request of the crowd; of a subject the log probabilities are wanted."""

    number: int
    kind: str
    prompt: list[int]
    num_tokens: int
    is_subject: bool

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(
            max_tokens=self.num_tokens,
            temperature=KINDS[self.kind],
            seed=self.number,
            ignore_eos=True,
            num_logprobs=NUM_LOGPROBS if self.is_subject else -1,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """Of one subject."""

    token_ids: list[int]
    scores: bytes  # a record of float32 numbers for each token


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of the subjects of one kind, how many were answered among so many as they were alone."""

    kind: str
    num_neighbours: int
    num_subjects: int
    num_same_tokens: int
    num_same_bits: int


def crowd(num_requests: int, size: int, vocab_size: int, num_tokens: int) -> list[Member]:
    """Subjects first, each request once of every kind, in any order; `num_tokens` is the longest
    output, and a prompt may be four times as long."""
    rng, members = Random(SEED), list[Member]()
    while len(members) < size:
        prompt = [rng.randrange(1, vocab_size) for _ in range(rng.randint(1, 4 * num_tokens))]
        length = rng.randint(-(-num_tokens // 2), num_tokens)
        is_subject = len(members) < num_requests * len(KINDS)
        for kind in KINDS if is_subject else ["sampled"]:
            members.append(Member(len(members), kind, prompt, length, is_subject))
    num_subjects = num_requests * len(KINDS)
    return rng.sample(members[:num_subjects], num_subjects) + members[num_subjects:]


def compare(
    engine: Engine, members: Sequence[Member], all_num_neighbours: Sequence[int]
) -> Iterator[Agreement]:
    """Each subject alone, then among the others and whoever else makes up the number."""
    subjects = [member for member in members if member.is_subject]
    alone = _answers(engine, [[subject] for subject in subjects])
    for num_neighbours in all_num_neighbours:
        among = _answers(engine, groups(members, len(subjects), num_neighbours + 1))
        for kind in KINDS:
            numbers = [subject.number for subject in subjects if subject.kind == kind]
            yield agreement(kind, num_neighbours, alone, among, numbers)


def agreement(
    kind: str,
    num_neighbours: int,
    alone: Mapping[int, Answer],
    among: Mapping[int, Answer],
    numbers: Sequence[int],
) -> Agreement:
    pairs = [(alone[number], among[number]) for number in numbers]
    same_tokens = sum(one.token_ids == other.token_ids for one, other in pairs)
    return Agreement(
        kind,
        num_neighbours,
        num_subjects=len(pairs),
        num_same_tokens=same_tokens,
        num_same_bits=sum(one == other for one, other in pairs),
    )


def groups(members: Sequence[Member], num_subjects: int, size: int) -> list[list[Member]]:
    """Of so many members each, until every subject was in one; the last is filled up."""
    num_groups = -(-num_subjects // size)
    return [list(members[size * n : size * (n + 1)]) for n in range(num_groups)]


def _answers(engine: Engine, all_groups: Sequence[Sequence[Member]]) -> dict[int, Answer]:
    """Of the subjects, by their numbers; one group after the other."""
    found: dict[int, Answer] = {}
    for group in all_groups:
        sequences = [sequence_of(one.number, one.prompt, one.params) for one in group]
        for sequence in sequences:
            engine.add(sequence)
        while engine.has_work:
            engine.step()
        for member, sequence in zip(group, sequences, strict=True):
            assert sequence.num_output_tokens == member.num_tokens
            if member.is_subject:
                output = sequence.token_ids[sequence.num_prompt_tokens :]
                found[member.number] = Answer(output, bytes(sequence.scores.output))
    return found
