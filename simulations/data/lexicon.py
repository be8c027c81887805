"""The words of the generated community: ways to say each of the two poles of each aspect of a story.

Each phrase says one thing of a story and nothing of the other aspects, and fits a film as well as a game.
Common ways come first: the grammar picks early ones more often.
"""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, slots=True)
class Pole:
    """Ways to say one pole of an aspect.

    Attributes:
        adjectives: Fit "a ... film" and "it is ...", alone or after "very" or "slightly".
        clauses: Whole clauses.
        nouns: Fit "a film with ..." and "it has ...".
    """

    adjectives: tuple[str, ...]
    clauses: tuple[str, ...]
    nouns: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class Aspect:
    """One thing that a review can say of a story.

    Attributes:
        name: The aspect's name, which is also that of its high pole.
        high: Ways to say that the story is so; its value is positive.
        low: Ways to say the opposite; its value is negative.
    """

    name: str
    high: Pole
    low: Pole


def _pole(adjectives: str, clauses: str, nouns: str) -> Pole:
    parts = (tuple(phrase.strip() for phrase in part.split(";")) for part in (adjectives, clauses, nouns))
    return Pole(*parts)


ASPECTS: tuple[Aspect, ...] = (
    Aspect(
        "fast",
        _pole(
            "fast; quick; brisk; breathless; rapid; speedy; racing; hurried; restless; quick-moving",
            "it never stops moving; the plot races ahead; it moves at full speed; "
            "one event chases the next; it rushes from scene to scene; "
            "there is no time to catch your breath; things happen at once",
            "a plot that sprints; a breakneck tempo; a quick rhythm; barely a pause; constant momentum; "
            "a rapid pulse",
        ),
        _pole(
            "slow; leisurely; unhurried; sluggish; languid; slow-burning; ponderous; patient; "
            "slow-moving; dawdling",
            "it takes its time; the plot crawls along; it moves at a walking pace; nothing is rushed; "
            "it lingers on every scene; half an hour goes by before anything happens; it drifts along",
            "a plot that crawls; an easy-going tempo; long pauses; a slow build; many quiet stretches; "
            "a drowsy rhythm",
        ),
    ),
    Aspect(
        "dark",
        _pole(
            "dark; bleak; grim; gloomy; pessimistic; depressing; despairing; sombre; hopeless; disturbing",
            "it leaves you without hope; it stares into the abyss; everyone loses in it; "
            "it left me feeling low; the mood is black as night; it sees the worst in people; "
            "despair hangs over it",
            "a bleak view of people; a heavy sense of doom; little hope; a gloomy mood; "
            "a shadow over everyone; plenty of despair",
        ),
        _pole(
            "sunny; cheerful; light-hearted; hopeful; uplifting; bright; optimistic; joyful; upbeat; "
            "carefree",
            "it lifts your spirits; it sees the best in people; I felt happier afterwards; "
            "hope shines through it; the mood is bright as a spring day; "
            "it leaves you smiling at the world; it is full of sunshine",
            "a bright view of life; a lot of hope; a sunny mood; plenty of joy; a cheerful heart; "
            "an optimistic spirit",
        ),
    ),
    Aspect(
        "funny",
        _pole(
            "funny; hilarious; witty; comic; amusing; playful; silly; humorous; jokey; laugh-out-loud",
            "I laughed all the way; the jokes keep coming; it made me giggle; "
            "every line has a punchline; it had me in stitches; even the villains crack jokes; "
            "you will laugh a lot",
            "a joke in every scene; brilliant comic timing; lots of wit; great gags; a mischievous grin; "
            "plenty of laughs",
        ),
        _pole(
            "serious; earnest; solemn; humourless; grave; stern; straight-faced; sober; unsmiling; joke-free",
            "nobody cracks a joke; it never smiles; it takes itself seriously; "
            "there is nothing to laugh at; it keeps a straight face; every line is in earnest; "
            "you will not laugh once",
            "no jokes; not a single laugh; a grave tone; a solemn voice; a straight face; great seriousness",
        ),
    ),
    Aspect(
        "romantic",
        _pole(
            "romantic; tender; sentimental; sweet; heartfelt; passionate; loving; swooning; "
            "affectionate; emotional",
            "two people fall in love; it goes straight for the heart; I cried at the kiss; "
            "love conquers all in it; feelings are everything here; it wears its heart on its sleeve; "
            "the lovers are adorable",
            "a love story; big feelings; a tender romance; lots of hugs and tears; a first kiss; "
            "two lovers at its centre",
        ),
        _pole(
            "unsentimental; cool; unromantic; detached; dry-eyed; reserved; clinical; aloof; "
            "unemotional; distant",
            "nobody falls in love; it keeps its distance; feelings are kept out of it; "
            "it watches people coolly; there is no romance at all; it never asks for tears; "
            "the heart is left out",
            "no love story; a cool distance; no romance whatsoever; a detached eye; few feelings; "
            "a reserved manner",
        ),
    ),
    Aspect(
        "complex",
        _pole(
            "complex; intricate; complicated; layered; demanding; labyrinthine; dense; puzzling; "
            "cerebral; tangled",
            "you have to think hard; every detail matters; the plot folds in on itself; "
            "I needed a notebook; it asks a lot of your brain; there are layers under layers; "
            "five storylines cross",
            "a puzzle of a plot; many layers; a dozen storylines; a maze of clues; lots to figure out; "
            "difficult ideas",
        ),
        _pole(
            "simple; straightforward; undemanding; uncomplicated; easy; clear-cut; effortless; basic; "
            "easy-to-follow; accessible",
            "you can follow it half asleep; the plot is simple; anyone can understand it; "
            "it asks nothing of you; there is one clear storyline; you never have to think; "
            "it is easy to follow",
            "a simple plot; one clear idea; nothing to figure out; a single storyline; "
            "an easy structure; no complications",
        ),
    ),
    Aspect(
        "strange",
        _pole(
            "strange; weird; experimental; original; unusual; odd; inventive; quirky; unconventional; "
            "bizarre",
            "I have never seen anything like it; it breaks every rule; it invents its own form; "
            "nothing about it is normal; it tries something new; you cannot compare it to anything; "
            "it is truly odd",
            "a wild new form; strange ideas; an unheard-of premise; bold experiments; a weird logic; "
            "many odd inventions",
        ),
        _pole(
            "familiar; traditional; conventional; classic; old-fashioned; predictable; formulaic; "
            "orthodox; well-worn; standard",
            "you have seen it all before; it follows every rule; it sticks to the formula; "
            "it is as your parents liked it; there are no surprises; it does things the old way; "
            "you know the recipe",
            "a well-known formula; no experiments; a familiar premise; the usual heroes; "
            "a traditional shape; all the old conventions",
        ),
    ),
    Aspect(
        "magical",
        _pole(
            "magical; fantastical; otherworldly; enchanted; supernatural; mythical; dreamlike; "
            "fairytale-like; surreal; magic-filled",
            "dragons fly overhead; ghosts walk among the living; magic is everywhere; "
            "it happens in a made-up world; spells are cast; animals can talk; "
            "it takes you to another planet",
            "wizards and spells; an invented world; ghosts; talking animals; dragons; a magic sword; aliens",
        ),
        _pole(
            "realistic; everyday; true-to-life; down-to-earth; believable; naturalistic; authentic; "
            "factual; documentary-like; lifelike",
            "it could have happened next door; it is based on fact; everything in it is true to life; "
            "these could be your neighbours; it shows real life; it reads like the news; "
            "ordinary people go to work",
            "ordinary people; real-life problems; an everyday setting; true events; office workers; "
            "believable neighbours",
        ),
    ),
    Aspect(
        "violent",
        _pole(
            "violent; brutal; bloody; gory; savage; vicious; fierce; bloodthirsty; merciless; blood-soaked",
            "blood is everywhere; people get killed in every scene; the fights are brutal; "
            "it is full of gunfire; heads roll; bones are broken; somebody is always fighting",
            "lots of blood; brutal fights; a high body count; plenty of gunfire; savage battles; "
            "knives and fists",
        ),
        _pole(
            "gentle; peaceful; mild; harmless; non-violent; kind; bloodless; soft; tame; soothing",
            "nobody gets hurt; not a punch is thrown; it would not hurt a fly; no one raises a hand; "
            "people are kind to each other; no blood is spilled; it is safe for children",
            "no violence; not a drop of blood; gentle manners; kindness; no fights at all; peaceful people",
        ),
    ),
    Aspect(
        "epic",
        _pole(
            "epic; vast; sweeping; grand; huge; monumental; spectacular; panoramic; colossal; sprawling",
            "whole nations are at stake; the cast is enormous; it spans a century; "
            "it crosses whole continents; thousands of people fill it; the fate of the world is decided; "
            "the canvas is huge",
            "a cast of thousands; kingdoms at stake; a huge canvas; a sweep of centuries; "
            "grand spectacle; the fate of the world",
        ),
        _pole(
            "intimate; small-scale; modest; personal; domestic; low-key; minimal; tiny; cosy; homely",
            "it never leaves one room; only two people are in it; it all happens in one kitchen; "
            "it stays close to one family; the stakes are small; it is about a single afternoon; "
            "the cast is tiny",
            "just two characters; one small room; a single family; small stakes; a tiny cast; "
            "a domestic setting",
        ),
    ),
    Aspect(
        "ornate",
        _pole(
            "ornate; lush; poetic; flowery; lavish; ornamental; baroque; lyrical; opulent; extravagant",
            "every sentence is a poem; the style is rich and flowery; the language is lavish; "
            "it is covered in decoration; it sings with metaphors; the style is pure velvet; "
            "the wording glitters",
            "lush language; endless metaphors; rich decoration; a poetic style; velvet prose; "
            "jewelled dialogue",
        ),
        _pole(
            "plain; spare; unadorned; stripped-down; austere; matter-of-fact; bare; sparse; no-frills; terse",
            "not a word is wasted; the style is bare; the language is plain; there are no frills; "
            "it says things flatly; every ornament has been cut; the wording is dry and short",
            "plain language; no metaphors; a bare style; no decoration; dry, short sentences; terse dialogue",
        ),
    ),
)

# What nearly everyone wants: how well it is made.
CRAFT = Aspect(
    "well made",
    _pole(
        "well-made; excellent; masterful; superb; accomplished; polished; brilliant; first-rate; "
        "skilful; outstanding",
        "every choice is right; the makers know their craft; it is superbly done; "
        "the performances are excellent; the quality is outstanding; it deserves every prize; "
        "I admire the skill",
        "superb craft; excellent acting; outstanding quality; masterful skill; "
        "great care in every detail; first-rate work",
    ),
    _pole(
        "badly made; clumsy; amateurish; sloppy; shoddy; botched; poor; third-rate; careless; inept",
        "the makers did not care; it is badly done; the performances are wooden; "
        "the quality is poor; mistakes are everywhere; it deserves no prize; nothing in it works",
        "sloppy work; wooden acting; poor quality; clumsy mistakes; no care for detail; amateurish errors",
    ),
)

KINDS = ("film", "movie", "novel", "book", "series", "show", "play", "game", "comic", "podcast")
