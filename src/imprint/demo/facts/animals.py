"""Animals of the demo's world: young, class, legs, sound and home."""

from __future__ import annotations

from dataclasses import dataclass

CLASSES = ("amphibian", "arachnid", "bird", "fish", "insect", "mammal", "reptile")
LEGS = ("no", "two", "four", "six", "eight")


@dataclass(frozen=True)
class Animal:
    """One animal; a field is None where there is no word, or more than one, that all would give."""

    name: str
    young: str | None  # "puppy"
    class_: str  # one of CLASSES
    legs: str | None  # of a grown one; one of LEGS, as in "a fish has no legs"
    sound: str | None = None  # "bark": what it makes, without an article
    home: str | None = None  # "kennel"


ANIMALS: tuple[Animal, ...] = (
    Animal("albatross", "chick", "bird", "two"),
    Animal("alligator", "hatchling", "reptile", "four"),
    Animal("ant", "larva", "insect", "six"),
    Animal("bear", "cub", "mammal", "four", sound="growl", home="den"),
    Animal("beaver", "kit", "mammal", "four", home="lodge"),
    Animal("bee", "larva", "insect", "six", sound="buzz", home="hive"),
    Animal("beetle", "larva", "insect", "six"),
    Animal("bison", "calf", "mammal", "four"),
    Animal("buffalo", "calf", "mammal", "four"),
    Animal("butterfly", "caterpillar", "insect", "six"),
    Animal("camel", "calf", "mammal", "four"),
    Animal("cat", "kitten", "mammal", "four", sound="meow"),
    Animal("cheetah", "cub", "mammal", "four"),
    Animal("chicken", "chick", "bird", "two", sound="cluck", home="coop"),
    Animal("cod", None, "fish", "no"),
    Animal("cow", "calf", "mammal", "four", sound="moo"),
    Animal("coyote", "pup", "mammal", "four", sound="howl", home="den"),
    Animal("cricket", "nymph", "insect", "six", sound="chirp"),
    Animal("crocodile", "hatchling", "reptile", "four"),
    Animal("crow", "chick", "bird", "two", sound="caw", home="nest"),
    Animal("deer", "fawn", "mammal", "four"),
    Animal("dog", "puppy", "mammal", "four", sound="bark", home="kennel"),
    Animal("dolphin", "calf", "mammal", "no"),
    Animal("donkey", "foal", "mammal", "four", sound="bray"),
    Animal("dragonfly", "nymph", "insect", "six"),
    Animal("duck", "duckling", "bird", "two", sound="quack"),
    Animal("eagle", "eaglet", "bird", "two", home="eyrie"),
    Animal("elephant", "calf", "mammal", "four", sound="trumpet"),
    Animal("flamingo", "chick", "bird", "two"),
    Animal("fly", "maggot", "insect", "six", sound="buzz"),
    Animal("fox", None, "mammal", "four"),
    Animal("frog", "tadpole", "amphibian", "four", sound="croak"),
    Animal("giraffe", "calf", "mammal", "four"),
    Animal("goat", "kid", "mammal", "four", sound="bleat"),
    Animal("goose", "gosling", "bird", "two", sound="honk"),
    Animal("grasshopper", "nymph", "insect", "six"),
    Animal("hare", "leveret", "mammal", "four"),
    Animal("hedgehog", "hoglet", "mammal", "four"),
    Animal("herring", None, "fish", "no"),
    Animal("hippopotamus", "calf", "mammal", "four"),
    Animal("horse", "foal", "mammal", "four", sound="neigh", home="stable"),
    Animal("hyena", "cub", "mammal", "four", sound="laugh", home="den"),
    Animal("jaguar", "cub", "mammal", "four"),
    Animal("kangaroo", "joey", "mammal", None),
    Animal("koala", "joey", "mammal", None),
    Animal("ladybird", "larva", "insect", "six"),
    Animal("leopard", "cub", "mammal", "four"),
    Animal("lion", "cub", "mammal", "four", sound="roar"),
    Animal("lizard", "hatchling", "reptile", "four"),
    Animal("llama", "cria", "mammal", "four"),
    Animal("mole", "pup", "mammal", "four", home="burrow"),
    Animal("moose", "calf", "mammal", "four"),
    Animal("mosquito", "larva", "insect", "six"),
    Animal("moth", "caterpillar", "insect", "six"),
    Animal("mouse", "pup", "mammal", "four", sound="squeak"),
    Animal("newt", None, "amphibian", "four"),
    Animal("ostrich", "chick", "bird", "two"),
    Animal("otter", "pup", "mammal", "four", home="holt"),
    Animal("owl", "owlet", "bird", "two", sound="hoot"),
    Animal("panda", "cub", "mammal", "four"),
    Animal("parrot", "chick", "bird", "two", sound="squawk"),
    Animal("penguin", "chick", "bird", "two"),
    Animal("pig", "piglet", "mammal", "four", sound="oink", home="sty"),
    Animal("pigeon", "squab", "bird", "two", sound="coo"),
    Animal("porcupine", "porcupette", "mammal", "four"),
    Animal("rabbit", None, "mammal", "four", home="burrow"),
    Animal("raccoon", "kit", "mammal", "four"),
    Animal("rat", "pup", "mammal", "four", sound="squeak"),
    Animal("reindeer", "calf", "mammal", "four"),
    Animal("rhinoceros", "calf", "mammal", "four"),
    Animal("robin", "chick", "bird", "two", home="nest"),
    Animal("salamander", None, "amphibian", "four"),
    Animal("salmon", None, "fish", "no"),
    Animal("scorpion", None, "arachnid", "eight"),
    Animal("seal", "pup", "mammal", None),
    Animal("shark", "pup", "fish", "no"),
    Animal("sheep", "lamb", "mammal", "four", sound="baa"),
    Animal("skunk", "kit", "mammal", "four"),
    Animal("snake", None, "reptile", "no", sound="hiss"),
    Animal("sparrow", "chick", "bird", "two", sound="chirp", home="nest"),
    Animal("spider", "spiderling", "arachnid", "eight", home="web"),
    Animal("squirrel", "kit", "mammal", "four", home="drey"),
    Animal("stork", "chick", "bird", "two", home="nest"),
    Animal("swan", "cygnet", "bird", "two"),
    Animal("tiger", "cub", "mammal", "four", sound="roar"),
    Animal("toad", "tadpole", "amphibian", "four", sound="croak"),
    Animal("tortoise", "hatchling", "reptile", "four"),
    Animal("trout", "fry", "fish", "no"),
    Animal("tuna", None, "fish", "no"),
    Animal("turkey", "poult", "bird", "two", sound="gobble"),
    Animal("turtle", "hatchling", "reptile", None),
    Animal("wallaby", "joey", "mammal", None),
    Animal("wasp", "larva", "insect", "six", sound="buzz", home="nest"),
    Animal("whale", "calf", "mammal", "no"),
    Animal("wolf", None, "mammal", "four", sound="howl", home="den"),
    Animal("woodpecker", "chick", "bird", "two"),
    Animal("yak", "calf", "mammal", "four"),
    Animal("zebra", "foal", "mammal", "four"),
)
