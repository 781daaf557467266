"""The names and words of the world, and those that are never seen in training."""

from __future__ import annotations

import functools
import string

import numpy as np

from train.shapes.config import SceneConfig, Split

Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "red": (214, 40, 40),
    "orange": (245, 133, 24),
    "yellow": (244, 210, 36),
    "green": (46, 150, 62),
    "blue": (38, 98, 214),
    "purple": (130, 58, 172),
    "pink": (246, 140, 190),
    "brown": (140, 88, 48),
}
KINDS = ("circle", "square", "triangle", "star", "cross", "heart", "moon")
# Half the extent, as fractions of the picture's side. The gaps keep the classes apart by eye.
SIZES: dict[str, tuple[float, float]] = {
    "small": (0.070, 0.085),
    "medium": (0.110, 0.130),
    "large": (0.165, 0.195),
}
SIZE_WEIGHTS = (0.4, 0.35, 0.25)
PLAIN = "plain"
TEXTURES = (PLAIN, "striped", "dotted", "outlined")
# Lightest and darkest grey of each background.
BACKGROUNDS: dict[str, tuple[int, int]] = {
    "white": (232, 250),
    "grey": (138, 168),
    "black": (18, 44),
}
PLACES = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the middle", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)
# A relation of a subject to an object; each is true in one direction only.
RELATIONS = ("inside", "left of", "above", "larger than")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
           "eleven", "twelve")  # fmt: skip
WORD = "word"


def plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def is_held_out(colour: str, kind: str, size: str) -> bool:
    """Whether the three occur together in the held-out split alone.

    One in eight does: of every kind and size one colour, of every colour and kind at most one size,
    of every colour and size at most one kind. So each pair of properties is seen in training.
    """
    c, k, s = list(COLOURS).index(colour), KINDS.index(kind), list(SIZES).index(size)
    return (c + 3 * k + 2 * s) % len(COLOURS) == 0


@functools.cache
def held_out_combinations() -> tuple[tuple[str, str, str], ...]:
    """Every (colour, kind, size) of the held-out split."""
    return tuple(
        (colour, kind, size)
        for colour in COLOURS
        for kind in KINDS
        for size in SIZES
        if is_held_out(colour, kind, size)
    )


_LIST = """
ab ad ah am an as at ax be bi by do eh el em en ex go ha he hi id if in io is it jo ki la lo ma me
mi mu my no nu of oh on op or ow ox pa pi qi re sh si so ta ti to up us we wo ye yo za
ace act add age ago aid air ale and ant any ape apt arc are arm art ash ask ate awe axe bad bag
ban bar bat bay bed bee beg bet bid big bin bit bog bow box boy bud bug bun bus but buy cab can
cap car cat cow cry cub cup cut dad dam day den dew did dig dim dip dog dot dry due dug dye ear
eat egg elf elk elm end era eve eye fan far fat fee few fig fin fir fit fix fly foe fog for fox
fry fun fur gap gas gel gem get gig gin gum gun guy gym had ham has hat hay hen her hid him hip
his hit hog hop hot how hub hug hum hut ice ill ink inn ivy jam jar jaw jet job jog joy jug keg
key kid kin kit lab lad lap law lay leg let lid lie lip lit log lot low mad man map mat may men
met mix mob mop mud mug nap net new nod not now nut oak oar odd off oil old one orb our out owl
own pad pal pan paw pay pea pen pet pie pig pin pit pod pop pot pro pub pug pup put rag ram ran
rat raw ray red rib rid rim rip rob rod rot row rub rug run rye sad sap sat saw say sea see set
sew she shy sip sir sit six ski sky sly sob son soy spa spy sum sun tab tag tan tap tar tax tea
ten the tie tin tip toe ton too top toy try tub tug two urn use van vat vet vow wag war was wax
way web wet who why wig win wit won wow yak yam yes yet you zap zip zoo
able acid aged also arch area army atom aunt away axis back bake ball band bank barn base bath
beam bean bear beat bell belt bend best bike bird blow blue boat body bold bone book boot born
both bowl brew burn bush busy cage cake call calm camp card care cart case cash cave chat chef
chin city clap clay clip club coal coat code coin cold cone cook cool copy cord corn cost cozy
crab crew crop crow cube curl cute dark dash data dawn deer desk dial dice diet dish dive dock
door dove down draw drop drum duck dune dust each earn east easy edge even exam exit face fact
fair fall farm fast fern film find fine fire fish five flag flat flip flow foam fold folk food
foot fork form four free frog fuel full game gate gift girl give glad glow glue goat gold golf
good gray grid grow gulf half hall hand harp hawk heat help herb hero hill hive hold home hook
hope horn hour huge icon idea inch iron item jade jazz joke jump jury just keen keep kick kind
king kite knee knot lace lake lamp land lane lava lawn lazy leaf lens life lift lime line link
lion list loaf loud love luck lung mail main mane maze meal melt menu milk mind mint moon moss
moth move much nail name navy near neck nest news next nice nine node noon nose note oath obey
odor omen once only open oval oven over pack page palm park past path peak pear pine pink plan
play plot plum pole pond pool port post quay quit quiz race rail rain rank rare read rice ride
ring road rock roof room root rope rose ruby rule rush safe sage sail salt same sand seal seed
shed ship shoe shop show silk sing size skin snow soap sock soft soil song soup spin star stem
step sung surf swan swim tail talk tall tank task taxi team tent test text tide time tiny toad
tone tour town tree trip tube tuna turn twin type unit vase vast verb very view vine vote wage
walk wall warm wash wave west wild wind wing wink wish wolf wood wool word work worm yard yarn
year yoga zero zinc zone zoom
about above actor acute adapt adult agent agree ahead alarm album alert alien alive alone alpha
amber angle ankle apple april apron arena arrow aside audio awake award bacon badge basic beach
beard begin bench berry birch black blade blank blend block bloom board brain brave bread brick
bride brief bring broom brown brush bunny cabin cable camel candy cargo carry catch chain chair
chalk charm chart check cheek chess chest chief child choir cider civic claim clean clear clerk
cliff climb clock close cloud clown coach coast cocoa coral couch count court cover craft crane
cream creek crisp cross crowd crown curve cycle daily dairy dance delta depth diary dodge donut
draft dream dress drift drink drive eagle early earth eight elbow empty enjoy entry equal event
every exact extra fable faith fancy feast fence ferry fever fiber field fifty flame flash fleet
float flock floor flour flute focus forge forty frame fresh frost fruit funny ghost giant glass
globe glove grain grand grape grass great green group guard guest guide happy heart heavy hello
hinge hobby honey horse hotel house human humor ideal image index inner issue ivory jelly jewel
joint judge juice jumbo kayak kiosk knife koala label large laser later laugh layer lemon level
light lilac limit lobby local logic loyal lucky lunar lunch magic major mango maple march marsh
match medal melon mercy merry metal minor minus model money month motor mount mouse mouth movie
music nerve never night noble noise north novel nurse ocean olive onion opera orbit order organ
other otter outer owner oxide paint panda panel paper party pasta patch peach pearl pedal phone
photo piano pilot pixel pizza plain plane plant plate plaza point polar porch power prize proof
proud pupil puppy queen quest quick quiet quilt quota radar radio raven ready relax rhyme river
roast robin robot rocky round royal rugby ruler rural salad sauce scale scarf scene scout seven
shade shark sharp sheep shelf shell shift shine shirt shore short sight silly skate skill sleep
slice slope small smart smile smoke snack snail snake solar solid sound south space spare spark
spice spoon sport spray squad stack staff stage stamp stand steam steel stone store storm story
stove straw sugar sunny swamp sweet swing sword table taste teach tempo thank theme thick three
thumb tiger toast today token topic torch total touch tower toxic track trade trail train treat
tribe trick trout truck trunk trust truth tulip uncle under union unity upper urban usual vague
valid value video villa viola visit vital vivid vocal voice wagon waste watch water whale wheat
wheel white whole width woman world worry wrist write yacht young youth zebra
"""

WORDS: tuple[str, ...] = tuple(sorted({word.upper() for word in _LIST.split()}))
HELD_OUT_WORDS: tuple[str, ...] = WORDS[3::8]
TRAINING_WORDS: tuple[str, ...] = tuple(sorted(set(WORDS) - set(HELD_OUT_WORDS)))

_LISTED = frozenset(WORDS)
_LETTERS = np.array(list(string.ascii_uppercase))


def draw_word(rng: np.random.Generator, config: SceneConfig, split: Split) -> str:
    """One word: capitals, as many as the config allows."""
    if split != "held-out" and rng.random() < config.invented_words:
        while True:
            count = rng.integers(config.letters[0], config.letters[1] + 1)
            word = "".join(rng.choice(_LETTERS, count))
            if word not in _LISTED:
                return word
    listed = HELD_OUT_WORDS if split == "held-out" else TRAINING_WORDS
    fitting = [word for word in listed if config.letters[0] <= len(word) <= config.letters[1]]
    return fitting[rng.integers(len(fitting))]
