"""Words for the demo model's tasks: everyday English words, and made-up ones so that spelling cannot be memorised."""

COMMON = """
ant apple arrow autumn baby badge bagel ball bamboo banana band bank barn basket bath beach bean bear beaver bed bee
bell belt bench berry bicycle bird biscuit blanket blossom board boat bone book boot bottle bowl box branch brave
bread breeze brick bridge bright broom brush bubble bucket butter button cabin cable cactus cake camel camera candle
candy canoe canyon captain car card carpet carrot castle cat cave ceiling cellar chair chalk cheese cherry chicken
chimney circle circus city clay clean clever cliff clock cloud clover coat coconut coffee coin comet cookie copper
coral corn cotton country cousin cow crab cradle crane crayon cream cricket crow crown cub cup curtain cushion dance
dawn day deer desert desk diamond dinner doctor dog dollar dolphin donkey door dragon drawer dream dress drum duck
dust eagle ear earth echo egg elbow elephant emerald engine evening eye fabric falcon family farm farmer father
feather fence fern ferry field finger fire fish flag flame flower flute fog forest fork fossil fountain fox friend
frog frost fruit garden garlic gate ghost giant ginger giraffe glacier glass globe glove goat gold goose grape grass
green guitar hammer hand harbor hat hawk hay hazel heart hen hill holiday honey hook horse hotel hour house ice
island ivory ivy jacket jar jelly jewel jigsaw journey juice jungle kettle key kitchen kite kitten knife knot ladder
lake lamb lamp lantern laptop lawn leaf leather lemon letter lettuce library light lily lime lion lizard lobster log
lunch magnet mango map maple marble market mask meadow melon milk mint mirror mitten monkey moon morning moss moth
mother mountain mouse muffin museum mushroom music nail napkin neck needle nest night noodle north nose notebook nut
oak oasis oat ocean office olive onion orange orchid otter oven owl paint palace panda paper parade parrot party
pasta path peach peacock peanut pear pebble pen pencil penguin pepper piano picnic pig pigeon pillow pilot pine
pirate pizza planet plate plum pocket poem pond pony potato prince puddle pumpkin puppy purple puzzle quail queen
quiet quilt rabbit radio rain rainbow raven ribbon rice ring river road robin robot rocket roof room root rope rose
rug sail salad salt sand sandal saturn saucer scarf school sea seal seed shadow shark sheep shell ship shirt shoe
shoulder silk silver sister skate sky sleep smile smoke snail snow soap sock sofa soup south spark sparrow spider
spoon spring square squirrel stable star station stone storm story stove straw strawberry street sugar summer sun
swan sweater swing table tail tea teacher tent thunder ticket tiger toast tomato tooth torch tower town toy train
treasure tree trumpet tulip tunnel turkey turtle umbrella uncle valley vase velvet village violin voice volcano
wagon walnut water wave wax whale wheat wheel whistle willow wind window winter wolf wood wool yard yarn year yellow
yogurt zebra zipper
""".split()

NAMES = """
Ada Ana Ben Bo Cara Carl Dan Dora Ed Ella Eva Finn Fred Gina Hana Hugo Ian Ida Iris Jack Joan Jon Karl Kim Lea Leo
Lily Lou Luca Maja Max Mia Mila Nils Nina Noa Nora Olga Oscar Otto Pam Paul Pia Ralf Rosa Ruth Sam Sara Ted Tess Tim
Tom Uma Vera Vic Will Yara Zoe
""".split()

CITIES = """
Athens Berlin Bern Boston Cairo Delhi Dublin Geneva Hanoi Lagos Lima Lisbon London Madrid Milan Nairobi Naples Oslo
Ottawa Paris Porto Prague Quito Riga Rome Seoul Sofia Tokyo Vienna Warsaw
""".split()

PETS = "cat dog fish frog hamster horse lizard mouse parrot pony rabbit snake spider turtle".split()
COLORS = "red blue green yellow white black brown pink purple orange gray".split()
DRINKS = "tea coffee milk water juice cocoa lemonade".split()

_ONSETS = "b c d f g h j k l m n p r s t v w z bl br ch cl cr dr fl fr gl gr pl pr sh sk sl sn sp st th tr".split()
_VOWELS = "a e i o u a e i o ai ea ee oa oo ou".split()
_CODAS = "b d g k l m n p r s t x y ck ll mp nd nt rd rk rn sh ss st th".split()


def made_up(rng, n_letters_max):
    """A pronounceable word of 3 to n_letters_max letters that most likely does not exist."""
    while True:
        n_syllables = rng.randint(1, 3)
        parts = []
        for _ in range(n_syllables):
            parts += [rng.choice(_ONSETS), rng.choice(_VOWELS)]
            if rng.random() < 0.35:
                parts.append(rng.choice(_CODAS))
        if n_syllables == 1:
            parts.append(rng.choice(_CODAS))
        word = "".join(parts)
        if 3 <= len(word) <= n_letters_max:
            return word


def any_word(rng, n_letters_max):
    while rng.random() < 0.5:
        word = rng.choice(COMMON)
        if len(word) <= n_letters_max:
            return word
    return made_up(rng, n_letters_max)
