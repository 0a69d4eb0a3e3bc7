"""The nouns of WordNet 3.0, in the package, read from memory through NLTK's reader: no download, no data folder.

``*.xz`` beside this file are made by `hrzs.wordnet.pack`; their licence is ``LICENSE.wordnet``.
"""

from hrzs.wordnet.reader import noun_synset, open_wordnet

__all__ = ["noun_synset", "open_wordnet"]
