"""``kwise doctor``: what other tools read from a reward-model folder, whether it is what kwise scores, and the mends.

``probes``   the conversations                          ``readers``  each tool, run or by its rule: readings of the probes
``checks``   defects of the folder, each under an id    ``mend``     a mended copy           ``report``  tables and JSON
"""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForSequenceClassification

from kwise.model.backbone import load_tokenizer
from kwise.model.reward_model import RewardModel
from kwise.use.doctor.checks import Facts, Finding, check, look
from kwise.use.doctor.probes import Probe, probes
from kwise.use.doctor.readers import READERS, Plain, Reader, Reading, kwise_score, read_all

TOLERANCE = 1e-3  # nats; float32 readings of one sequence differ by 1e-5 or so
FILES = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.txt"]


@dataclass
class Diagnosis:
    """``readings`` holds, for every reader, one reading a probe, or in words why there are none; ``kwise`` what ``kwise score``
    reads, or why it cannot. ``facts`` is None for a folder that cannot be loaded at all."""

    folder: Path
    findings: list[Finding]
    probes: list[Probe] = field(default_factory=list)
    kwise: list[Reading | None] | str = "the model cannot be loaded"
    readings: dict[str, list[Reading | None] | str] = field(default_factory=dict)
    facts: Facts | None = None

    @property
    def well(self) -> bool:
        """Is there nothing but warnings?"""
        return all(finding.level != "error" for finding in self.findings)

    def difference(self, name: str) -> float | str | None:
        """The largest difference of that reader's scores from kwise's on compared probes (NaN is infinite); a refusal in
        words; None where there is nothing to compare."""
        found = self.readings[name]
        if isinstance(found, str):
            return found
        if isinstance(self.kwise, str):
            return None
        largest = None
        for probe, own, other in zip(self.probes, self.kwise, found, strict=True):
            if own is None or own.score is None or other is None or not self.compares(probe):
                continue
            if other.score is None:
                return other.refused
            gap = abs(own.score - other.score)
            largest = max(largest or 0.0, gap if gap == gap else float("inf"))
        return largest

    def compares(self, probe: Probe) -> bool:
        """Is ``probe`` one on which all should agree? Not if it is there to be cut, or if kwise's settings cut it."""
        assert self.facts is not None
        limit = self.facts.settings.max_length if self.facts.settings else self.facts.context
        ids = self.facts.tokenizer.apply_chat_template(probe.chat, return_dict=False)
        return probe.compared and len(ids) <= limit

    def disagrees(self, reader: Reader, tolerance: float) -> bool:
        """Does that reader refuse, or give other scores?"""
        found = self.difference(reader.name)
        if isinstance(found, str):
            return not found.startswith("not installed")
        return found is not None and found > tolerance


def diagnose(model: str | os.PathLike[str], tolerance: float = TOLERANCE) -> Diagnosis:
    """Examine the reward model in folder (or hub id) ``model``. Scores within ``tolerance`` nats of kwise's agree.

    Raises ``ValueError`` for what is no model folder at all, and for a tolerance below 0 or not finite.
    """
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"the tolerance is how far scores may lie apart, in nats, at least 0; this is {tolerance}")
    try:
        folder = Path(model) if Path(model).is_dir() else Path(snapshot_download(str(model), allow_patterns=FILES))
    except (OSError, ValueError) as error:  # of the hub, which does not say what it was asked for
        raise ValueError(f"{model} is no folder, and the hub does not give it: {error}") from error
    try:
        facts = look(folder, load_tokenizer(folder))
    except ValueError as error:
        name, mend = (
            ("problem_type", "set it to 'regression'") if "problem_type" in str(error) else ("not_loadable", "none")
        )
        return Diagnosis(folder, [Finding(name, "error", str(error), mend, mendable=False, lost=True)])
    found = Diagnosis(folder, [], probes(facts.tokenizer, facts.context), facts=facts)
    findings = check(facts, found.probes)
    found.kwise = _kwise(found)
    if found.probes:
        _read(found)
    found.findings = [_measured(found, each, tolerance) for each in findings] + _unexplained(found, findings, tolerance)
    return found


def _kwise(found: Diagnosis) -> list[Reading | None] | str:
    try:
        return kwise_score(RewardModel.from_pretrained(found.folder), found.probes)
    except (ValueError, IndexError) as error:  # IndexError: a token beyond the embedding
        return str(error)


def _read(found: Diagnosis) -> None:
    """First the readers that run in the folder's own dtype, then the others in float32."""
    assert found.facts is not None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = found.facts.model.to(device)
    for own in (True, False):
        if not own and model.dtype != torch.float32:
            model = AutoModelForSequenceClassification.from_pretrained(
                found.folder, dtype=torch.float32, ignore_mismatched_sizes=True
            )
            model.eval().to(device)
        plain = Plain(found.folder, model, found.facts.tokenizer, found.facts.context)
        for reader in READERS:
            if ("dtype" in reader.traits) is own:
                found.readings[reader.name] = read_all(reader, plain, found.probes)
    found.readings = {reader.name: found.readings[reader.name] for reader in READERS}


def _measured(found: Diagnosis, finding: Finding, tolerance: float) -> Finding:
    """``finding`` with its level, by whether a reader whom it may lead astray does disagree."""
    if finding.level != "measured":
        return finding
    led = [reader for reader in READERS if finding.explains & reader.traits and found.readings]
    wrong = [r.name for r in led if "ending" not in r.traits and found.disagrees(r, tolerance)]
    unknown = isinstance(found.kwise, str)
    who = f" (disagree: {', '.join(wrong)})" if wrong else ""
    return finding._replace(level="error" if wrong or unknown else "warning", what=finding.what + who)


def _unexplained(found: Diagnosis, findings: list[Finding], tolerance: float) -> list[Finding]:
    """What no check accounts for: kwise cannot score, or a reader disagrees that nothing is known to lead astray."""
    errors = [finding for finding in findings if finding.level != "warning"]
    if isinstance(found.kwise, str):
        finding = Finding("not_scorable", "error", f"kwise cannot score it: {found.kwise}", "see the message", False)
        return [] if errors else [finding]
    explained = frozenset(["ending"]).union(*(finding.explains for finding in findings))
    wrong = [r for r in READERS if found.readings and not r.traits & explained and found.disagrees(r, tolerance)]
    return [
        Finding("disagrees", "error", f"{reader.name}: {_gap(found.difference(reader.name))}", reader.rule, False)
        for reader in wrong
    ]


def _gap(difference: float | str | None) -> str:
    return difference if isinstance(difference, str) else f"scores differ from kwise's by up to {difference:.2g}"
