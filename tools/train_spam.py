"""Learn the spam weights, and say how well they do on what they have not seen.

    python tools/train_spam.py ../shared/real/messages.json [--check]

Material: messages that real forms received (not part of this repository) and
tests/corpus/. Figures come from cross-validation in which near twins (one campaign)
stay together, and, harder, whole sources (a site's form) do. Writes
frontdesk/spam-weights.txt with seed, checksum of the material and figures on top;
--check only prints, by language and kind as well.
"""

import argparse
import ast
import inspect
import json
import math
import random
import re
import sys
from collections import Counter, defaultdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from frontdesk import spam  # noqa: E402

SEED = 17
FOLDS, DEALS = 10, 3
C = 4.0  # how far weights may go: the strength of logistic regression's penalty
SCALE = 5.0  # of words against signs
SEEN = 2, 2  # a word counts that is in so many campaigns, and in so many sources
# How many honest ones may be asked, when unseen: real ones by campaign and by source,
# and our own, which are harder.
ASKED = 0.009, 0.009, 0.07
OWN = 0.5  # how much each of our own messages counts, beside 1 for a real one
NOTHING = 60  # honest messages of which no word is known
SENTENCES = (  # scored again by a test
    "Hi, we checked site.example and can put it on the first page of Google for $99.",
    "Could you send me a quote for repainting the garage door? Thanks, Petra",
    "Здравствуйте! Предлагаем продвижение сайта, цены от 5000 руб.",
    "Take a look: https://bit.ly/x",
)

Row = dict[str, Any]


def load(path: Path) -> list[Row]:
    """Return real and own messages, each with its label, source and campaign."""
    rows: list[Row] = []
    real = json.loads(path.read_text("utf-8"))
    form, run = None, 0
    for row in sorted(real, key=lambda row: row["id"]):
        if row["label"] not in ("spam", "ham", "test"):
            continue
        # Rows of one site follow each other, and have the same fields.
        phone = [key for key in row.get("extra", {}) if key in ("phone", "tel")]
        this = (row["label"], *(phone or row.get("extra", {})), "subject" in row)
        run, form = run + (this != form), this
        rows.append({**row, "spam": row["label"] == "spam", "source": f"real {run}"})
    for name in ("honest", "honest-more", "spam", "spam-more"):
        own = json.loads((ROOT / f"tests/corpus/{name}.json").read_text("utf-8"))
        for n, row in enumerate(own):
            source = f"{name} {n}"
            rows.append({**row, "spam": name.startswith("spam"), "source": source})
    campaigns = twins([f"{row.get('subject') or ''} {row['message']}" for row in rows])
    for row, campaign in zip(rows, campaigns, strict=True):
        row["campaign"] = campaign
        extra = [str(value) for value in (row.get("extra") or {}).values()]
        told = row["message"], row.get("name") or "", row.get("subject") or ""
        row["read"] = spam.read(*told, extra, ("site.example",))
        row["typed"] = sum(points for points, _ in row["read"].typed)
    return rows


def is_real(row: Row) -> bool:
    return str(row["source"]).startswith("real")


def kind_of(row: Row) -> str:
    return f"{'real' if is_real(row) else 'own'} {'spam' if row['spam'] else 'honest'}"


def twins(texts: list[str]) -> list[int]:
    """Return a group for each text; texts that share 30 % of their runs share it."""
    runs = []
    for text in texts:
        words = re.findall(r"\w+", text.casefold())
        runs.append({tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))})
    return join(runs, 0.3)


def join(sets: list[set[Any]], share: float) -> list[int]:
    """Group sets of which one holds so large a share of the other."""
    parent = list(range(len(sets)))

    def root(n: int) -> int:
        while parent[n] != n:
            n = parent[n]
        return n

    having: dict[Any, list[int]] = defaultdict(list)
    for n, each in enumerate(sets):
        common = Counter(other for item in each for other in having[item])
        for other, count in common.items():
            if count > share * min(len(each), len(sets[other])):
                parent[root(n)] = root(other)
        for item in each:
            having[item].append(n)
    return [root(n) for n in range(len(sets))]


def folds(rows: list[Row], groups: list[int], seed: int) -> np.ndarray:
    """Deal groups out, the largest first, so that both labels are spread evenly."""
    members: dict[int, list[int]] = defaultdict(list)
    for n, group in enumerate(groups):
        members[group].append(n)
    decks = list(members.values())
    random.Random(seed).shuffle(decks)  # noqa: S311
    fold, load = np.zeros(len(rows), int), np.zeros((FOLDS, 2))
    for deck in sorted(decks, key=len, reverse=True):
        label = int(rows[deck[0]]["spam"])
        chosen = int(np.argmin(load[:, label]))
        fold[deck] = chosen
        load[chosen, label] += len(deck)
    return fold


class Model:
    """Logistic regression over words (shared out by text length) and signs."""

    def __init__(self, rows: list[Row]) -> None:
        campaigns, sources = defaultdict(set), defaultdict(set)
        for row in rows:
            for word in row["read"].words:
                campaigns[word].add(row["campaign"])
                sources[word].add(row["source"])
        known = sorted(
            word
            for word in campaigns
            if len(campaigns[word]) >= SEEN[0]
            and len(sources[word]) >= SEEN[1]
            # Single letters say nothing; names in the material were made ".example".
            and (word[1:] or not word.isascii())
            and "examp" not in word
        )
        names = [*known, *(f"={sign}" for sign in spam.SIGNS)]
        self.column = {name: n for n, name in enumerate(names)}
        self.regression = LogisticRegression(
            C=C, class_weight="balanced", max_iter=1000, random_state=SEED
        )
        # A text without a known word says nothing: many such, all honest.
        nothing = {"read": spam.read(""), "spam": False, "source": "nothing"}
        rows = [*rows, *[nothing] * NOTHING]
        labels, counts = zip(
            *((row["spam"], 1 if is_real(row) else OWN) for row in rows), strict=True
        )
        self.regression.fit(self.matrix(rows), labels, counts)

    def matrix(self, rows: list[Row]) -> csr_matrix:
        cells: list[tuple[int, int, float]] = []
        for n, row in enumerate(rows):
            words, signs = row["read"][:2]
            share = SCALE / math.sqrt(max(len(words), spam.SHORT))
            cells += [
                (n, self.column[word], share) for word in words if word in self.column
            ]
            cells += [(n, self.column[f"={sign}"], 1.0) for sign in signs]
        at_row, at_column, values = zip(*cells, strict=True)
        shape = (len(rows), len(self.column))
        return csr_matrix((values, (at_row, at_column)), shape=shape)

    def scores(self, rows: list[Row]) -> np.ndarray:
        return np.asarray(self.regression.decision_function(self.matrix(rows)))


def unseen(rows: list[Row], groups: list[int]) -> np.ndarray:
    """Return each message's score by models that saw nothing of its group.

    The mean of several deals: of one alone, a single message would set the threshold.
    """
    scores = np.zeros(len(rows))
    for deal in range(DEALS):
        fold = folds(rows, groups, SEED + deal)
        for k in range(FOLDS):
            model = Model([row for row, f in zip(rows, fold, strict=True) if f != k])
            mine = np.flatnonzero(fold == k)
            scores[mine] += model.scores([rows[n] for n in mine]) / DEALS
    return scores


def by_source(rows: list[Row]) -> list[int]:
    """Group by source and campaign together."""
    marks: list[set[Any]] = [{row["campaign"], row["source"]} for row in rows]
    return join(marks, 0.1)


def points(rows: list[Row], scores: np.ndarray, ask: float, hold: float) -> np.ndarray:
    """Turn scores into points, as weights will be, and add what is set by hand."""
    learned = (scores - ask) * (spam.HOLD - spam.ASK) / (hold - ask) + spam.ASK
    typed = np.array([row["typed"] for row in rows])
    return np.asarray(np.maximum(learned, 0).astype(int) + typed)


def figures(rows: list[Row], total: np.ndarray) -> str:
    """Say how many of which kind would be asked and held."""
    lines = []
    for kind in ("real spam", "real honest", "own spam", "own honest"):
        mine = np.array([kind_of(row) == kind for row in rows])
        n, held = mine.sum(), (total[mine] >= spam.HOLD).sum()
        caught = (total[mine] >= spam.ASK).sum()
        lines.append(
            f"{kind}: {n}, held {held}, doubtful {caught - held} "
            f"({100 * caught / n:.1f} % held or doubtful)"
        )
    return "; ".join(lines)


def by(rows: list[Row], total: np.ndarray, field: str) -> str:
    """Say for each language or kind of real messages how many were caught."""
    counts: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, points in zip(rows, total, strict=True):
        if is_real(row):
            counts[kind_of(row), row[field]].append(int(points))
    return "\n".join(
        f"| {kind} | {value} | {len(each)} | "
        f"{sum(n >= spam.HOLD for n in each)} | "
        f"{sum(spam.ASK <= n < spam.HOLD for n in each)} |"
        for (kind, value), each in sorted(
            counts.items(), key=lambda item: (item[0][0], -len(item[1]))
        )
    )


def source_digest() -> str:
    """Return a digest of the code that reads features; comments do not matter."""
    tree = ast.parse(inspect.getsource(spam))
    start = "SHORTENERS"
    dumps = [ast.dump(node) for node in tree.body]
    first = next(n for n, dump in enumerate(dumps) if start in dump)
    last = next(n for n, dump in enumerate(dumps) if "'is_random'" in dump)
    return sha256("\n".join(dumps[first:last]).encode()).hexdigest()[:16]


def material_digest(path: Path) -> str:
    """Return a digest of all that the weights are learned from."""
    digest = sha256(path.read_bytes())
    for name in ("honest", "honest-more", "spam", "spam-more"):
        digest.update((ROOT / f"tests/corpus/{name}.json").read_bytes())
    return digest.hexdigest()[:16]


def lines_of(model: Model, ask: float, hold: float) -> list[str]:
    """Return weights in points, features of the same weight on one line."""
    points = (spam.HOLD - spam.ASK) / (hold - ask)
    intercept = float(model.regression.intercept_[0])
    table = {"=": (intercept - ask) * points + spam.ASK}
    for name, n in model.column.items():
        factor = 1.0 if name.startswith("=") else SCALE
        table[name] = float(model.regression.coef_[0, n]) * factor * points
    by_weight = defaultdict(list)
    for name, weight in table.items():
        step = 100 if name.startswith("=") else 5
        if rounded := round(weight * step) / step:
            by_weight[rounded].append(name)
    return ["\t".join([f"{w:g}", *by_weight[w]]) for w in sorted(by_weight)]


def write(header: list[str], weights: list[str]) -> None:
    text = "\n".join([*(f"# {line}" for line in header), *weights]) + "\n"
    spam.WEIGHTS.write_text(text, "utf-8")
    spam._weights.cache_clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = ROOT.parent / "shared/real/messages.json"
    parser.add_argument("messages", nargs="?", type=Path, default=default)
    parser.add_argument("--check", action="store_true", help="only print figures")
    args = parser.parse_args()
    rows = load(args.messages)
    campaigns, sources = [row["campaign"] for row in rows], by_source(rows)
    scores, harder = unseen(rows, campaigns), unseen(rows, sources)
    honest = np.array([not row["spam"] for row in rows])
    real = np.array([is_real(row) for row in rows])
    unasked = scores[honest & real], harder[honest & real], scores[honest & ~real]
    ask = max(
        float(np.sort(some)[-1 - int(share * len(some))])
        for some, share in zip(unasked, ASKED, strict=True)
    )
    ask += 0.02  # just above those who are not to be asked
    worst = max(scores[honest & real].max(), harder[honest & real].max())
    hold = max(float(worst) + 0.5, ask + 3)
    print(f"ask {ask:.2f}, hold {hold:.2f}")
    header = [
        "Written by tools/train_spam.py: points, then what weighs so much",
        f"seed {SEED}; features {source_digest()}; "
        f"material {material_digest(args.messages)}",
        f"By campaign: {figures(rows, points(rows, scores, ask, hold))}",
        f"By source: {figures(rows, points(rows, harder, ask, hold))}",
    ]
    print("\n".join(header))
    for field in ("lang", "kind") * args.check:
        print(by(rows, points(rows, scores, ask, hold), field))
    if args.check:
        return
    weights = lines_of(Model(rows), ask, hold)
    write(header, weights)
    for sentence in SENTENCES:
        scored = spam.score(spam.read(sentence, hosts=("site.example",)))
        header.append(f"scores {scored:.3f}: {sentence}")
    write(header, weights)


if __name__ == "__main__":
    main()
