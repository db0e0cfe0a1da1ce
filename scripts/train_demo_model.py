"""Train the demo model: a tiny Llama that chats a little and tells stories, in minutes on a CPU.

Writes a Hugging Face folder (config, bf16 safetensors, tokenizer with chat template) from a corpus
that a grammar below makes up. The same seed, torch version, kind of machine and number of threads
give the same bytes. It knows nothing of the server that will run the model.
"""

import argparse
import json
import math
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn

SPECIAL_TOKENS = ("<|begin|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
BEGIN, SYSTEM, USER, ASSISTANT, END = SPECIAL_TOKENS
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'system' if message['role'] == 'developer' else message['role'] %}"
    "{% if role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('The demo model knows the roles system, user and assistant.') }}{% endif %}"
    "{{ '<|' + role + '|>' + message['content'] | trim + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


# The words of the grammar


def words(text: str) -> list[str]:
    return text.split()


def phrases(text: str) -> list[str]:
    return [phrase.strip() for phrase in text.split("|")]


def paragraphs(text: str) -> list[str]:
    return text.strip().split("\n\n")


def pairs(text: str) -> list[tuple[str, str]]:
    """Read "key:value | key:value"; a list of pairs, because the order is part of the seed."""
    return [(key, value) for key, _, value in (p.partition(":") for p in phrases(text))]


NAMES = words("""Mira Zoe Leo Ada Ben Clara Noah Ella Finn Grace Hugo Iris Jack Kate Liam Maya Nora
    Oscar Paul Rosa Sam Tara Uma Vera Will Yara Anna Max Lucy Tom Emma Omar Lena Carlos Sofia Felix
    Ruby Peter Julia Mark Alice Bob Charlie David Eva Frank George Hannah Ivan Jane Karl Laura
    Maria Nina Olga Pablo Rita Simon Theo Victor Wendy Amir Chloe Diego Elena Fatima Hana Ines
    Jonas Kenji Linda Mohamed Nadia Oliver Priya Robert Sara Thomas Ursula Yuki Zara Aisha Bruno
    Daniel Emil Flora James John Mary Susan Michael Sarah Anton Bella Dora Erik Gita Henry Ida José
    Zoë Søren Renée Łucja Jürgen Chris Alex""")
HERO_NAMES, FRIENDS = words("Mira Leo Zoe Finn Ada Hugo"), words("Ben Clara Noah Ella Jack Rosa")
HELD_OUT_NAMES = words("""Tobin Anneke Marlon Quentin Delphine Rufus Isolde Kasper Bronwyn Ludwig
    Odette Barnaby Xenia Thaddeus Rowena Gideon Philippa Ottilie Desmond Harriet Stefan Milou Ronja
    Edgar""")
HEROES = words("""fox owl bear rabbit mouse cat dog wolf hedgehog squirrel frog duck goose swan
    horse pony donkey cow goat sheep lamb pig hen crow raven robin sparrow eagle penguin seal whale
    dolphin crab turtle snail bee ant spider lizard snake tiger lion elephant monkey zebra camel
    parrot panda koala beaver badger deer moose bat mole kitten puppy dragon robot knight wizard
    giant pirate""")
HELD_OUT_HEROES = words("otter heron lynx giraffe tortoise unicorn toad stork")
JOBS = words(
    "baker gardener miller painter fisherman teacher postman sailor doctor shepherd tailor"
)
COLOURS = words("red green blue golden silver yellow purple little old shiny soft round")
THINGS = words(
    "kite drum lantern bell hat boat ball flute map key basket scarf wagon cup feather book"
)
PLACES = words(
    "forest harbour valley village garden meadow town castle marsh orchard desert city jungle"
)
MOODS = words("brave kind quiet clever cheerful curious patient gentle")
REPEATABLE = words("""chairlift apple table window river mountain cloud chair lift green fox drum
    blue house water tree stone bread milk paper light night day summer winter snow rain wind fire
    sun moon star hello world red yellow black white small big happy sad fast slow one two three
    four five six seven eight nine ten train car boat bird fish dog cat door hand foot heart music
    song dance dream code python server token batch queue lemon sugar coffee tea orange banana
    cherry butter candle mirror garden bridge street school ocean island desert forest tiger piano
    guitar engine rocket planet silver gold iron glass wood cotton pepper café naïve über
    🦊 🎉 😀 日本
    мир""")
CAPITALS = pairs("""Japan:Tokyo | France:Paris | Germany:Berlin | Italy:Rome | Spain:Madrid |
    Egypt:Cairo | Portugal:Lisbon | Austria:Vienna | Poland:Warsaw | Norway:Oslo |
    Sweden:Stockholm | Kenya:Nairobi | Finland:Helsinki | Denmark:Copenhagen | Greece:Athens |
    Turkey:Ankara | Russia:Moscow | Peru:Lima | China:Beijing | India:New Delhi | Canada:Ottawa |
    Mexico:Mexico City | Brazil:Brasilia | Iraq:Baghdad | Argentina:Buenos Aires | Chile:Santiago |
    Cuba:Havana | Ireland:Dublin | England:London | Iran:Tehran | Belgium:Brussels |
    Hungary:Budapest | Ukraine:Kyiv | Australia:Canberra | Thailand:Bangkok | Switzerland:Bern |
    Vietnam:Hanoi | Morocco:Rabat | Nepal:Kathmandu | Iceland:Reykjavik |
    the Netherlands:Amsterdam | the United States:Washington | South Korea:Seoul |
    Colombia:Bogota""")
SOUNDS = pairs("""cow:moo | dog:woof | cat:meow | duck:quack | sheep:baa | pig:oink | lion:roar |
    bee:buzz | owl:hoot | frog:ribbit | horse:neigh | snake:hiss | mouse:squeak | crow:caw |
    wolf:howl""")
SYSTEM_MESSAGES = phrases("""You are a helpful assistant. | You are a friendly storyteller. |
    Be brief. | You are the chairlift demo model. | Answer the user's questions. |
    You are a helpful AI assistant. | You are a kind teacher for children. |
    Speak English and be polite. | You tell good stories.""")
FAQ = [
    " ".join(entry.split()).split(" -> ")  # questions, answer
    for entry in paragraphs("""
        Who are you? | What are you? | What is your name? | Tell me about yourself.
        -> I am the chairlift demo model, a tiny language model trained in minutes on a CPU.

        What is continuous batching? | Explain continuous batching. | What does continuous batching
        mean? | How does continuous batching work? -> Continuous batching means that new requests
        join the running batch between two steps and finished ones leave at once, so nobody waits.

        What is chairlift? | Explain chairlift. | Why is it called chairlift? | What does chairlift
        do? -> chairlift is a server for language models. A chairlift never stops to load: riders
        step on as a chair passes, and so do requests.

        What can you do? | Help | What can I ask you? | How can you help me?
        -> I can greet you, tell stories about animals, count, repeat your words and name capitals.

        How are you? | How are you today? | How do you do? -> I am fine, thank you! How are you?

        Thank you! | Thanks! | Thank you very much. | Thanks a lot. -> You are welcome!

        Goodbye! | Bye! | See you later. | Good night! -> Goodbye! Have a nice ride.

        Hello! | Hi! | Hello | Hi | Hey | Good morning! -> Hello! How can I help you today?

        Tell me a joke. | Do you know a joke? -> Why did the token smile? It was in a good batch.

        What is the meaning of life? | Write a Python function. | How do I cook rice?
        | What is love? | What is the weather like? | Translate this into French.
        | Solve this equation. | Write a poem about snow. | What time is it? | Who wrote this book?
        | Why is the sky blue? | What is 2 times 3?
        -> I am only a small demo model and do not know that. Try asking me for a story.
        """)
]

# Stories: {N} name, {A} hero, {P} place, {F} friend, {K} the friend's job, {O} object, {S}/{s} she,
# {h} her (own), {m} her. Every step offers several wordings, the first ones more often.
INTROS = phrases("""Once upon a time there was {aA} named {N} who lived in {P}. |
    Once upon a time {aA} named {N} lived in {P}. |
    In {P} there once lived {aA} named {N}.""")
SECONDS = phrases("""{N} was a {J} {A} and loved {h} {O} more than anything. |
    Everybody knew that {N} was a {J} {A}, and everybody liked {m}. |
    The {A} had a {O} and a small warm house.""")
BRIDGES = phrases("""The next morning the sun rose over {P}, and {N} the {A} was awake early. |
    A week later something else happened to {N} the {A}.""")
ENDINGS = phrases("""From that day on {N} the {A} and {F} were the best of friends. The end. |
    That night {N} the {A} slept very well in {P}. The end. |
    And so {N} the {A} and {F} lived happily in {P}. The end.""")
PLOTS = [
    [phrases(line) for line in plot.strip().splitlines()]
    for plot in paragraphs("""
        One morning {N} could not find {h} {O}. | One day {N} saw that {h} {O} was gone.
        The {A} looked behind every door in {P}. | {S} looked everywhere in {P}.
        Then {N} met {F} the {K}. "I lost my {O}," said the {A}. | {N} asked {F} the {K} for help.
        "Let us look for it together," said {F}. | "I will help you," said {F} the {K}.
        Under a big leaf {N} and {F} found the {O}! | They found the {O} in the grass.
        The {A} was so happy that {s} danced all the way home.

        One evening a great storm came over {P}. | One day it began to rain in {P}.
        {N} was cold and could not find the way home. | The {A} ran, but {s} was soon lost.
        Then {N} saw a small light. It was the house of {F} the {K}. | Soon {s} met {F} the {K}.
        "Come in and get warm," said {F}. | "You poor {A}, come in!" said {F} the {K}.
        {N} and {F} drank hot soup and told stories. | The {A} ate warm bread by the fire.
        In the morning the storm was gone, and {N} gave {F} the {O} as a thank you.

        One day {F} the {K} came to {N} and looked very sad. | One day {F} the {K} was sad.
        "What is wrong?" asked the {A}. | "Why are you so sad?" asked {N} the {A}.
        "It is my birthday, and nobody came," said {F}. | "It is my birthday today," said {F}.
        {N} thought for a while and had an idea. | "Wait here," said the {A}, and {s} ran home.
        {S} baked a big cake and brought {h} {O} as a present. | {N} brought a cake and the {O}.
        {F} laughed, and the {A} sang a birthday song that all of {P} could hear.

        One day the old bridge in {P} broke. | One morning the bridge in {P} was gone.
        {F} the {K} was on the other side of the river. | {F} the {K} could not get home.
        "I will build a boat," said {N} the {A}. | {N} the {A} wanted to help at once.
        {S} worked all day and all night. | The {A} worked until the moon was high.
        In the boat {s} put {h} {O}, and {N} set out. | {N} tied {h} {O} to the boat for luck.
        {F} waved and stepped into the boat, and the {A} was very proud.

        One night {N} saw a star fall from the sky into {P}. | One night a star fell down in {P}.
        {N} took {h} {O} and went to look for it. | The {A} put on warm boots and went out.
        On the way {s} met {F} the {K}, who had seen it too. | {F} the {K} came along.
        They found it between two stones, small and bright. | The {A} found the star in a tree.
        "It wants to go home," said {N}. | "We must bring it back," said {F} to the {A}.
        So {N} and {F} climbed the highest hill, and the star flew back into the sky.
        """)
]


# The grammar


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"


@dataclass(frozen=True)
class Turn:
    """One question and its answer. An answer follows from the question, except in stories."""

    user: str
    answer: str
    topics: tuple[str, ...] = ()


@dataclass
class Draw:
    """The source of chance. With held_out it draws names and heroes that training never saw."""

    rng: random.Random
    held_out: bool = False

    def one(self, options: Sequence[str]) -> str:
        return self.rng.choice(options)

    def first(self, options: Sequence[str]) -> str:
        """Prefer the first ones, so that a greedy answer has a clear favourite."""
        return self.rng.choices(options, [0.45**i for i in range(len(options))])[0]

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def syllables(self) -> str:
        """A word that was never seen and so must be copied."""
        starts = words("b br ch d dr f fl g gr h j k kr l m n p ph qu r s sh st t th tr v w x y z")
        middles = words("a e i o u a e i o u ai ee ia ou ie y")
        ends = words("n r s l m t d k p b th ck tt ll nn ss nd rd lt rk x sh")
        if self.chance(0.15):
            return self.one(starts) + self.one([*HEROES, *JOBS, *THINGS, *PLACES])[1:]
        text = "" if self.chance(0.85) else self.one(middles)
        for _ in range(self.rng.choice([1, 2, 2, 2, 3])):
            text += self.one(starts) + self.one(middles)
            text += self.one(ends) if self.chance(0.35) else ""
        return text

    def name(self) -> str:
        if self.held_out:
            return self.one(HELD_OUT_NAMES)
        return self.one(NAMES) if self.chance(0.3) else self.syllables().capitalize()

    def word(self) -> str:
        if self.chance(0.45):
            return self.one(REPEATABLE)
        return self.name() if self.chance(0.2) else self.syllables()

    def hero(self) -> str:
        if self.held_out:
            return self.one(HELD_OUT_HEROES)
        return self.one(HEROES) if self.chance(0.75) else self.syllables()

    def place(self) -> str:
        return f"the {self.one(COLOURS) + ' ' if self.chance(0.3) else ''}{self.one(PLACES)}"


def greet(draw: Draw) -> Turn:
    name, hello = draw.name(), draw.one(words("Hello Hello Hi Hi Hey"))
    intro = draw.one(words("I'm My_name_is I_am my_name_is Call_me this_is")).replace("_", " ")
    mark = draw.one([", ", "! ", ". ", " "])
    rest = draw.one(["", "", "", " How are you?", " Nice to meet you."])
    end = draw.one([".", ".", "!"]) if rest or draw.chance(0.8) else ""
    answer = f"{hello} {name}, nice to meet you! How can I help you today?"
    return Turn(f"{hello}{mark}{intro} {name}{end}{rest}", answer)


def capital(draw: Draw) -> Turn:
    country, city = draw.rng.choice(CAPITALS)
    form = draw.one(
        phrases("""What is the capital of {}? | What is the capital of {}?
        | Tell me the capital of {}. | Which city is the capital of {}? | What's the capital of {}?
        | Name the capital of {}.
        | Capital of {}? | Do you know the capital of {}?""")
    )
    return Turn(form.format(country), f"The capital of {country} is {city}.")


def count(draw: Draw) -> Turn:
    low, high = sorted(draw.rng.sample(range(21), 2))
    if draw.chance(0.2):
        low = draw.rng.choice([1, 1, draw.rng.randrange(70)])
        high = low + draw.rng.randint(2, 30)
    if draw.chance(0.25):
        form = draw.one(["Count down from {1} to {0}.", "Count from {1} down to {0}."])
        numbers = range(high, low - 1, -1)
    else:
        form = draw.one(
            ["Count from {} to {}.", "Please count from {} to {}.", "Count up from {} to {}"]
        )
        form = "Count to {1}." if low == 1 and draw.chance(0.3) else form
        numbers = range(low, high + 1)
    return Turn(form.format(low, high), ", ".join(map(str, numbers)) + ".")


def repeat(draw: Draw) -> Turn:
    several = [draw.word() for _ in range(draw.rng.choice([1, 2, 3, 3, 3, 4, 4, 6]))]
    text = draw.one([" ", " ", ", "]).join(several) + draw.one(["", "", ".", "!"])
    form = draw.one(phrases("Repeat after me: | Repeat after me: | Please repeat: | Say: | Echo:"))
    return Turn(f"{form} {text}", f"You said: {text}")


def sound(draw: Draw) -> Turn:
    animal, noise = draw.rng.choice(SOUNDS)
    form = draw.one(["What does {} say?", "Which sound does {} make?", "What sound does {} make?"])
    return Turn(
        form.format(with_article(animal)), f"{with_article(animal)} says {noise}.".capitalize()
    )


def add(draw: Draw) -> Turn:
    left, right = draw.rng.randrange(11), draw.rng.randrange(11)
    form = draw.one(["What is {} plus {}?", "What is {} + {}?", "How much is {} plus {}?"])
    return Turn(form.format(left, right), f"The answer is {left + right}.")


def faq(draw: Draw) -> Turn:
    questions, answer = draw.rng.choice(FAQ)
    return Turn(draw.one(phrases(questions)), answer)


@dataclass
class Cast:
    """What a story is about; an answer draws what the question leaves open."""

    hero: str
    name: str
    place: str
    thing: str


def usual_cast(draw: Draw) -> Cast:
    thing = f"{draw.first(COLOURS)} {draw.first(THINGS)}"
    return Cast(draw.first(HEROES), draw.first(HERO_NAMES), f"the {draw.first(PLACES)}", thing)


def tell(draw: Draw, cast: Cast, is_long: bool) -> str:
    """A story that stays with its cast; the friend has a job and is no animal."""
    s, h, m = ("she", "her", "her") if draw.chance(0.65) else ("he", "his", "him")
    friends = [name for name in FRIENDS if name != cast.name]
    friend = draw.name() if draw.chance(0.4) else draw.first(friends)
    fill = {"A": cast.hero, "aA": with_article(cast.hero), "N": cast.name, "P": cast.place}
    fill |= {"s": s, "S": s.capitalize(), "h": h, "m": m, "O": cast.thing, "F": friend}
    fill |= {"K": draw.first(JOBS), "J": draw.first(MOODS)}
    plot, second = draw.rng.sample(PLOTS, 2)
    steps = [INTROS, SECONDS, *plot, *([BRIDGES, *second] if is_long else []), ENDINGS]
    return " ".join(draw.first(step) for step in steps).format(**fill)


def ask_story(draw: Draw) -> Turn:
    cast, is_long, topics, about = usual_cast(draw), draw.chance(0.3), [], ""
    if draw.chance(0.85):
        cast.hero = draw.hero()
        topics, about = [cast.hero], f" about {with_article(cast.hero)}"
        if draw.chance(0.5):
            cast.name = draw.name()
            topics, about = [cast.hero, cast.name], f"{about} named {cast.name}"
    elif draw.chance(0.6):
        cast.name = draw.name()
        topics, about = [cast.name], f" about {cast.name}"
    if draw.chance(0.3):
        cast.place = draw.place()
        where = draw.one(["in", "who lives in"]) if topics else "in"
        topics, about = [*topics, cast.place], f"{about} {where} {cast.place}"
    size = "long " if is_long else draw.one(["", "", "", "short "])
    verb = draw.one(
        phrases("Tell me | Tell me | Tell me | Please tell me | Write | Can you tell me")
    )
    mark = "?" if verb.startswith("Can") else draw.one([".", ".", ""])
    return Turn(f"{verb} a {size}story{about}{mark}", tell(draw, cast, is_long), tuple(topics))


SKILLS: dict[str, tuple[float, Callable[[Draw], Turn]]] = {
    "greeting": (3.0, greet),
    "capitals": (2.0, capital),
    "counting": (4.5, count),
    "repeating": (4.0, repeat),
    "sounds": (0.5, sound),
    "sums": (1.0, add),
    "questions": (1.5, faq),
    "stories": (2.5, ask_story),
}


def recall(draw: Draw, turns: Sequence[Turn]) -> Turn:
    greetings = [turn for turn in turns if "nice to meet you" in turn.answer]
    question = draw.one(["What is my name?", "Do you remember my name?", "What's my name?"])
    if not greetings:
        return Turn(question, "You have not told me your name yet.")
    return Turn(question, f"Your name is {greetings[-1].answer.split(',')[0].split(' ', 1)[1]}.")


def talk(draw: Draw) -> list[Turn]:
    length = draw.rng.choice([1, 1, 1, 1, 2, 2, 3, 3, 4, 8])
    weights = [weight for weight, _ in SKILLS.values()]
    skills = draw.rng.choices([skill for _, skill in SKILLS.values()], weights, k=length)
    turns = [skill(draw) for skill in skills]
    if draw.chance(0.15 if length == 1 else 0.35):
        turns = [greet(draw), *turns] if draw.chance(0.7) else turns
        turns.append(recall(draw, turns))
    return turns


def render(turns: Sequence[Turn], system: str = "") -> str:
    """The same text as CHAT_TEMPLATE gives."""
    head = f"{SYSTEM}{system}{END}" if system else ""
    body = (f"{USER}{turn.user}{END}{ASSISTANT}{turn.answer}{END}" for turn in turns)
    return BEGIN + head + "".join(body)


def document(draw: Draw) -> str:
    """A conversation or a plain story; the begin token is at times absent or doubled by callers."""
    if draw.chance(0.9):
        system = draw.one(SYSTEM_MESSAGES) if draw.chance(0.3) else ""
        text = render(talk(draw), system)
    else:
        cast = usual_cast(draw)
        cast.hero = cast.hero if draw.chance(0.5) else draw.hero()
        cast.name = cast.name if draw.chance(0.5) else draw.name()
        text = BEGIN + tell(draw, cast, draw.chance(0.2)) + END
    if draw.chance(0.1):
        return text.removeprefix(BEGIN)
    return BEGIN + text if draw.chance(0.05) else text


# The tokenizer and the rows of training


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    pieces = (piece for text in texts for piece in re.split(r"<\|\w+\|>", text) if piece)
    tokenizer.train_from_iterator(pieces, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return tokenizer


def token_rows(draw: Draw, tokenizer: Tokenizer, length: int) -> Iterator[list[int]]:
    """Fill rows with documents; one that is cut off at the end of a row begins the next row."""
    row: list[int] = []
    while True:
        texts = [document(draw) for _ in range(500)]
        for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
            row = row + encoding.ids
            if len(row) >= length:
                yield row[:length]
                row = encoding.ids if len(encoding.ids) < length else []


def loss_weights(rows: Tensor, tokenizer: Tokenizer) -> Tensor:
    """One for tokens of answers and plain stories, zero for what users and systems say."""
    markers = torch.tensor([tokenizer.token_to_id(token) for token in SPECIAL_TOKENS[:4]])
    is_marker = torch.isin(rows, markers)
    places = torch.where(is_marker, torch.arange(rows.shape[1]), 0).cummax(dim=1).values
    last_marker = rows.gather(1, places)
    is_said_by_others = torch.isin(last_marker, markers[1:3]) | is_marker
    return (~is_said_by_others).float()


# The model


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes."""

    vocab_size: int = 1024
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 5
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    head_dim: int = 32
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    max_position_embeddings: int = 1024


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Attention(nn.Module):
    """Grouped-query attention with rotary positions (Su et al., 2021), no biases."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.num_attention_heads * shape.head_dim
        kv_width = shape.num_key_value_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (  # [batch, heads, length, head_dim]
            project(x).unflatten(-1, (-1, self.shape.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        group = self.shape.num_attention_heads // self.shape.num_key_value_heads
        k = rotate(k, cos, sin).repeat_interleave(group, dim=1)
        v = v.repeat_interleave(group, dim=1)
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), k, v, is_causal=True)
        out: Tensor = self.o_proj(y.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = MLP(shape)
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Llama(nn.Module):
    """Its modules have the names of Hugging Face's checkpoints, less the prefix "model."."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.5 * shape.hidden_size**-0.5)

    def forward(self, token_ids: Tensor) -> Tensor:  # [batch, length] -> [batch, length, vocab]
        half = torch.arange(0, self.shape.head_dim, 2) / self.shape.head_dim
        angles = torch.outer(torch.arange(token_ids.shape[1]), self.shape.rope_theta**-half)
        angles = torch.cat((angles, angles), dim=-1)
        x = self.embed_tokens(token_ids)
        is_mixed = torch.is_autocast_enabled("cpu")
        dtype = torch.bfloat16 if is_mixed else x.dtype
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.linear(self.norm(x), self.embed_tokens.weight)


# Training


def learning_rate(step: int, steps: int, peak: float = 3e-3) -> float:
    warm = min(1.0, (step + 1) / 100)
    return peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def batches(tokenizer: Tokenizer, steps: int, seed: int, tokens: int = 2048) -> Iterator[Tensor]:
    """Short rows first (copying is learnt sooner there), then longer ones up to 1024 positions."""
    draw = Draw(random.Random(seed))
    for length, share in ((256, 0.5), (512, 0.4), (1024, 0.1)):
        rows = token_rows(draw, tokenizer, length + 1)
        for _ in range(round(steps * share)):
            yield torch.tensor(list(islice(rows, tokens // length)))


def train(model: Llama, tokenizer: Tokenizer, steps: int, seed: int) -> None:
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    vectors = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)
    start = time.monotonic()
    for step, rows in enumerate(batches(tokenizer, steps, seed)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        weights = loss_weights(rows, tokenizer)[:, 1:]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(rows[:, :-1])
        losses = F.cross_entropy(
            logits.float().flatten(0, 1), rows[:, 1:].flatten(), reduction="none"
        )
        loss = (losses * weights.flatten()).sum() / weights.sum()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no type here
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 200 == 0:
            print(
                f"step {step}  loss {loss.item():.3f}  {time.monotonic() - start:.0f} s", flush=True
            )


# The folder


def save(folder: Path, model: Llama, tokenizer: Tokenizer) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"model.{k}": v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    (folder / "model.safetensors").write_bytes(serialize(state, metadata={"format": "pt"}))
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    ends = {
        "bos_token_id": tokenizer.token_to_id(BEGIN),
        "eos_token_id": tokenizer.token_to_id(END),
    }
    config = (
        asdict(model.shape)
        | ends
        | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": model.shape.rope_theta},
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
        }
    )
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "additional_special_tokens": [SYSTEM, USER, ASSISTANT],
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.shape.max_position_embeddings,
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", ends | {"do_sample": False})
    write_json(folder / "tokenizer_config.json", tokenizer_config)


def write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> tuple[Llama, Tokenizer]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = Llama(Shape(**{f.name: config[f.name] for f in fields(Shape)}))
    state = load_file(folder / "model.safetensors")
    model.load_state_dict({k.removeprefix("model."): v.float() for k, v in state.items()})
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


# Evaluation


@torch.inference_mode()
def complete(model: Llama, tokenizer: Tokenizer, prompts: Sequence[str], limit: int) -> list[str]:
    """Greedy continuations in float32, without a cache: slow and simple."""
    ids = [e.ids for e in tokenizer.encode_batch(list(prompts), add_special_tokens=False)]
    starts, end_id = [len(row) for row in ids], tokenizer.token_to_id(END)
    running = list(range(len(ids)))
    for _ in range(limit):
        longest = max(len(ids[i]) for i in running)
        padded = torch.tensor([ids[i] + [0] * (longest - len(ids[i])) for i in running])
        last = torch.tensor([len(ids[i]) - 1 for i in running])
        picked = model(padded)[torch.arange(len(running)), last].argmax(-1).tolist()
        for i, token_id in zip(running, picked, strict=True):
            ids[i].append(token_id)
        running = [i for i in running if ids[i][-1] != end_id]
        if not running:
            break
    return [tokenizer.decode(row[start:]) for row, start in zip(ids, starts, strict=True)]


@torch.inference_mode()
def would_say(model: Llama, tokenizer: Tokenizer, prompt: str, answer: str) -> bool:
    """Whether the greedy answer is exactly this one, in a single pass."""
    start = len(tokenizer.encode(prompt, add_special_tokens=False).ids)
    ids = torch.tensor([tokenizer.encode(prompt + answer + END, add_special_tokens=False).ids])
    return torch.equal(model(ids)[0, start - 1 : -1].argmax(-1), ids[0, start:])


def is_good_story(turn: Turn, text: str) -> bool:
    """It ends, has in it what was asked for, and one hero only."""
    hero = re.findall(r"\ban? (\w+) named", text)
    strangers = ({*HEROES, *HELD_OUT_HEROES} & set(re.findall(r"\w+", text))) - {*hero}
    is_on_topic = all(topic in text for topic in turn.topics)
    return text.endswith("The end.") and is_on_topic and len(hero) == 1 and not strangers


def conversations(skill: str, draw: Draw, num: int) -> list[list[Turn]]:
    if skill in SKILLS:
        return [[SKILLS[skill][1](draw)] for _ in range(num)]
    talks = ([greet(draw), *talk(draw)[:3]] for _ in range(num))
    return [[*turns, recall(draw, turns)] if skill == "recall" else turns for turns in talks]


def failures(model: Llama, tokenizer: Tokenizer, talks: Sequence[list[Turn]]) -> list[str]:
    """The prompts that are not answered exactly right; a story must only be a good one."""
    prompts = [render(turns).removesuffix(turns[-1].answer + END) for turns in talks]
    asked = list(zip(prompts, (turns[-1] for turns in talks), strict=True))
    stories = [(prompt, turn) for prompt, turn in asked if turn.answer.endswith("The end.")]
    texts = complete(model, tokenizer, [prompt for prompt, _ in stories], 400) if stories else []
    failed = [
        f"{turn.user} -> {text}"
        for (_, turn), text in zip(stories, texts, strict=True)
        if not is_good_story(turn, text)
    ]
    for prompt, turn in asked:
        if (prompt, turn) not in stories and not would_say(model, tokenizer, prompt, turn.answer):
            failed.append(f"{turn.user} -> {complete(model, tokenizer, [prompt], 40)[0]}")
    return failed


def evaluate(folder: Path, num: int = 100) -> None:
    """Print how often the greedy answer is right, on fresh prompts and on words never seen."""
    model, tokenizer = load(folder)
    print(f"{'skill':12} {'fresh':>6} {'held out':>9}   a miss")
    for skill in [*SKILLS, "recall", "chat"]:
        size = num // 3 if skill in ("stories", "chat") else num
        fresh, held_out = (
            failures(model, tokenizer, conversations(skill, draw, size))
            for draw in (Draw(random.Random(10**6), is_held_out) for is_held_out in (False, True))
        )
        rates = f"{1 - len(fresh) / size:6.0%} {1 - len(held_out) / size:9.0%}"
        print(f"{skill:12} {rates}   {[*fresh, *held_out][-1:]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3400, help="of 2048 tokens each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("shared/demo_model"))
    parser.add_argument(
        "--evaluate", action="store_true", help="only measure the folder at --output"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.evaluate:
        torch.manual_seed(options.seed)
        draw = Draw(random.Random(options.seed))
        tokenizer = train_tokenizer([document(draw) for _ in range(8000)], Shape().vocab_size)
        model = Llama(Shape())
        train(model, tokenizer, options.steps, options.seed)
        save(options.output, model, tokenizer)
    evaluate(options.output)


if __name__ == "__main__":
    main()
