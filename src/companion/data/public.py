"""Public data sets: registry, download, defensive parsing and the fixed splits.

Files come from ``$COMPANION_DATA`` if it is set, else from the cache, else from the url in
``data/registry.tsv``; their sha256 is checked each time. Rows are split by the hash of their
text, once and for all (:func:`split_of`); near-duplicates of evaluation rows are dropped from
the other parts (:mod:`companion.data.near_duplicates`).
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from pathlib import Path

import pandas as pd
import pooch

from companion import paths, store
from companion.data import near_duplicates
from companion.errors import CompanionError

# The modulus that sends a row of a source to the evaluation part (the rest: dev or train).
EVALUATION_MODULUS = {"jigsaw": 5, "sbf": 5, "dynahate": 4, "paradetox": 10}
SBF_EVALUATION_SOURCE = "redditMicroagressions"  # spelled so in the file: MaRCo's own set


def registry() -> pd.DataFrame:
    """Return ``data/registry.tsv``: file, sha256, bytes, url, licence, derived, contents.

    ``derived`` says whether a file was made of what the url has (*yes*) or is that (*no*).
    """
    return pd.read_csv(paths.DATA / "registry.tsv", sep="\t").set_index("file", drop=False)


def fetch(name: str, *, progressbar: bool = False) -> Path:
    """Return the path of one registered file, downloading it if need be.

    Raises
    ------
    CompanionError
        If the name is not registered, the file is missing or cannot be had, or its sha256 is wrong. A file
        that is derived from another cannot be downloaded: ``$COMPANION_DATA`` has it or nothing has.
    """
    rows = registry()
    if name not in rows.index:
        raise CompanionError(f"'{name}' is not in data/registry.tsv: choose one of {', '.join(rows.index)}.")
    row = rows.loc[name]
    if not os.environ.get("COMPANION_DATA"):
        if is_derived(row):
            made = f"'{name}' is derived from {row.url} and cannot be downloaded"
            raise CompanionError(f"{made}: set COMPANION_DATA to a folder that holds it.")
        return _download(name, row, progressbar)
    local = paths.absolute(os.environ["COMPANION_DATA"])
    if not Path(local).is_dir():
        remedy = "set it to the folder of the public data or unset it"
        raise CompanionError(f"COMPANION_DATA is '{local}', which is not a folder: {remedy}.")
    path = Path(local) / name
    if not path.is_file():
        remedy = "put it there" if is_derived(row) else "put it there, or unset COMPANION_DATA to download it"
        raise CompanionError(f"'{name}' is not in COMPANION_DATA ('{local}'): {remedy}.")
    if store.sha256_file(path) != row.sha256:
        registered = f"derived from {row.url} as the registry says" if is_derived(row) else row.url
        remedy = f"replace it with the registered version ({registered})"
        raise CompanionError(f"'{path}' does not have the sha256 of data/registry.tsv: {remedy}.")
    return path


def is_derived(row: pd.Series) -> bool:
    """Whether a row of the registry is of a file that was made of what its url has."""
    return bool(row.derived == "yes")


def _download(name: str, row: pd.Series, progressbar: bool) -> Path:
    target = paths.cache() / "public" / name
    if target.is_file():
        if store.sha256_file(target) != row.sha256:
            raise CompanionError(
                f"the cached file '{target}' is corrupt: delete it and run `companion fetch`."
            )
        return target
    store.writable(target.parent)
    sha256 = f"sha256:{row.sha256}"
    try:
        return Path(pooch.retrieve(row.url, sha256, target.name, target.parent, progressbar=progressbar))
    except (OSError, ValueError) as error:
        if store.is_disk_full(error):
            raise store.disk_full_error() from error
        wrong, remedy = f"'{name}' could not be downloaded ({type(error).__name__})", "check the network"
        if "does not match the known hash" in str(error):  # pooch: it keeps nothing
            wrong, remedy = f"the download of '{name}' does not have its registered sha256", "try again later"
        elif proxy := store.blamed_proxy(error):
            remedy = f"the likely cause is the proxy in {proxy}, so correct or unset it"
        raise CompanionError(
            f"{wrong}: {remedy}, or set COMPANION_DATA to a folder that holds it."
        ) from error


def text_hash(text: str) -> int:
    """First 8 hex digits of the sha256 of the stripped text, as an integer."""
    return int(hashlib.sha256(text.strip().encode()).hexdigest()[:8], 16)


def split_of(text: str, source: str) -> str:
    """Return ``eval``, ``dev`` or ``train`` for a row of a hash-split source."""
    return "eval" if text_hash(text) % EVALUATION_MODULUS[source] == 0 else dev_or_train(text)


def dev_or_train(text: str) -> str:
    """The part of a row that is no evaluation row: one in ten is ``dev``."""
    return "dev" if text_hash(text) % 10 == 1 else "train"


def jigsaw() -> pd.DataFrame:
    """12,180 Wikipedia comments, half of them toxic (no header, sorted by label)."""
    rows = pd.read_csv(fetch("jigsaw/balanced.csv"), header=None, names=["text", "label"])
    return _labelled(rows, "jigsaw")


def sbf() -> pd.DataFrame:
    """Social Bias Frames posts; label 1 if at least half the annotators found it offensive.

    Posts occur once per annotation: rows are grouped, and posts of the MaRCo set
    (``redditMicroagressions``) are evaluation rows whatever their hash.
    """
    rows = pd.read_csv(fetch("marco/sbf_dev.csv")).dropna(subset=["post", "offensiveYN"])
    rows["post"] = rows.post.str.strip()
    rows = rows.groupby("post", as_index=False, sort=False).agg(
        offensive=("offensiveYN", "mean"), origin=("dataSource", _origin)
    )
    rows["label"] = (rows.offensive >= 0.5).astype(int)
    rows = _labelled(rows.rename(columns={"post": "text"}), "sbf")
    rows.loc[rows.origin == SBF_EVALUATION_SOURCE, "split"] = "eval"
    return rows


def _origin(sources: pd.Series) -> str:
    return SBF_EVALUATION_SOURCE if (sources == SBF_EVALUATION_SOURCE).any() else sources.iloc[0]


def dynahate() -> pd.DataFrame:
    """Adversarially written hate and not-hate."""
    rows = pd.read_csv(fetch("marco/dynahate_dev.csv")).dropna(subset=["text", "label"])
    rows["label"] = (rows.label == "hate").astype(int)
    return _labelled(rows[["text", "label"]], "dynahate")


def paradetox() -> pd.DataFrame:
    """Toxic sentences (label 1) and their first neutral rewrite (label 0), split by the toxic side.

    A few lines have irregular tabs: a line counts if its first two fields are not empty.
    """
    rows: list[tuple[str, int, str, str]] = []
    with fetch("paradetox/paradetox.tsv").open(encoding="utf-8", newline="") as file:
        for line in list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]:
            toxic, neutral = (field.strip() for field in [*line, "", ""][:2])
            if toxic and neutral:
                split = split_of(toxic, "paradetox")
                rows += [(toxic, 1, "paradetox", split), (neutral, 0, "paradetox", split)]
    return pd.DataFrame(rows, columns=["text", "label", "source", "split"])


def microaggressions(split: str) -> list[str]:
    """Quotes of microaggressions: ``eval`` is the validation file; the training file is split by hash."""
    rows = pd.read_csv(fetch(f"marco/microaggressions_{'val' if split == 'eval' else 'train'}.csv"))
    texts = rows.actual_quote.dropna().str.strip().drop_duplicates()
    return [text for text in texts if text and (split == "eval" or dev_or_train(text) == split)]


def rewriting_sets(split: str) -> dict[str, pd.DataFrame]:
    """The offensive sentences of MaRCo's three evaluation sets (column ``text``).

    Of Social Bias Frames, ``eval`` has MaRCo's own 92 posts.
    """
    posts, hate = sbf(), dynahate()
    own = (posts.origin == SBF_EVALUATION_SOURCE) | (split != "eval")
    sets = {
        "microaggressions": pd.Series(microaggressions(split)),
        "sbf": posts[(posts.split == split) & (posts.label == 1) & own].text,
        "dynahate": hate[(hate.split == split) & (hate.label == 1)].text,
    }
    return {name: texts.to_frame("text").reset_index(drop=True) for name, texts in sets.items()}


def rated_rewrites() -> pd.DataFrame:
    """Rewrites of toxic sentences that people rated (Dale et al., 2021); for evaluation only.

    A third of the sentences come from comments that scorers and adapters may have learned from: those that
    nearly repeat a train or dev row of any source are left out.

    Columns ``original``, ``rewritten``, ``system``, and the means of three people's ratings between 0 and 1:
    ``style`` (1: not toxic), ``meaning`` and ``fluency``.
    """
    rows = pd.read_csv(fetch("detox/human_eval.tsv"), sep="\t", keep_default_na=False, dtype=str)
    rows = rows.rename(columns={"source": "system"})
    known = labelled()
    known = known[known.split != "eval"]
    rows = rows[~near_duplicates.near_duplicates(rows.original, of=known.text)].reset_index(drop=True)
    ratings = rows[["style", "meaning", "fluency"]].astype(float)
    return rows[["original", "rewritten", "system"]].join(ratings)


def challenge_prompts() -> list[str]:
    """The 1,199 RealToxicityPrompts challenge prompts (all of them evaluation rows)."""
    with fetch("rtp/challenge_prompts.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line)["prompt"] for line in file if line.strip()]


def hatecheck() -> pd.DataFrame:
    """Half of HateCheck (Röttger et al., 2021): text, label (1 hateful), functionality, template.

    For evaluation only: :mod:`companion.toxicity.examination` reads it and nothing else does.
    """
    rows = pd.read_csv(fetch("bias/hatecheck_half.csv"), dtype={"test_case": str})
    rows = rows.rename(columns={"test_case": "text", "templ_id": "template"})
    rows["label"] = (rows.label_gold == "hateful").astype(int)
    return rows[["text", "label", "functionality", "template"]]


def madlibs() -> pd.DataFrame:
    """Sentences of the bias madlibs (Dixon et al., 2018): text, label (1 toxic), group.

    For evaluation only, as :func:`hatecheck`. The group is the word that the shortest template, a verb and a
    group, shows behind its verb; each text holds one.
    """
    rows = pd.read_csv(fetch("bias/madlibs_half.csv"), dtype=str).rename(columns={"Text": "text"})
    words = rows.text[rows.Template == "verb_adj"].str.split(n=1).str[1].unique()
    longest_first = sorted(words, key=len, reverse=True)
    rows["group"] = rows.text.str.extract(rf"\b({'|'.join(map(re.escape, longest_first))})\b", expand=False)
    return rows.assign(label=(rows.Label == "BAD").astype(int))[["text", "label", "group"]]


def perspective_continuations() -> pd.DataFrame:
    """Human continuations of RealToxicityPrompts and Perspective's scores: text, toxicity and seven others.

    For evaluation only, as :func:`hatecheck`.
    """
    return pd.read_json(fetch("rtp/scored_continuations.jsonl"), lines=True, dtype={"text": str})


def wikitext(split: str) -> list[str]:
    """Paragraphs of WikiText-2 (``eval``: raw test split; ``dev``: valid split, de-tokenised)."""
    path = fetch({"eval": "wikitext2/wiki.test.raw", "dev": "wikitext2/wiki.valid.tokens"}[split])
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [detokenise(line) for line in lines if line and not line.startswith("=")]


def detokenise(text: str) -> str:
    """Undo WikiText's spacing (``@-@``, `` , ``, ``( a )``), so that a language model sees plain text."""
    text = re.sub(r" @([-.,])@ ", r"\1", text)
    text = re.sub(r" ([.,:;!?%)\]])", r"\1", text)
    text = re.sub(r"([(\[$£]) ", r"\1", text)
    text = re.sub(r'(^| )" ([^"]*?) "', r'\1"\2"', text)
    return re.sub(r" '(s|t|re|ve|ll|d|m)\b", r"'\1", text)


def labelled(sources: tuple[str, ...] = ("jigsaw", "sbf", "dynahate", "paradetox")) -> pd.DataFrame:
    """Return all labelled rows (text, label, source, split), near-duplicates on one side.

    Rows of train and dev that nearly repeat an evaluation row, and rows of train that nearly
    repeat a dev row, are dropped; so are exact repeats.
    """
    readers = {"jigsaw": jigsaw, "sbf": sbf, "dynahate": dynahate, "paradetox": paradetox}
    rows = pd.concat([readers[source]() for source in sources], ignore_index=True)
    rows = rows.drop_duplicates(subset=["text", "source"])
    for parts, earlier in ((("dev", "train"), "eval"), (("train",), "dev")):
        here = rows.split.isin(parts)
        repeats = near_duplicates.near_duplicates(rows.text[here], of=rows.text[rows.split == earlier])
        rows = rows.drop(index=rows.index[here][repeats])
    return rows.reset_index(drop=True)


def _labelled(rows: pd.DataFrame, source: str) -> pd.DataFrame:
    rows = rows.assign(text=rows.text.astype(str).str.strip(), source=source)
    rows = rows[rows.text != ""]
    return rows.assign(split=[split_of(text, source) for text in rows.text])
