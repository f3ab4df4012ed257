"""NNI's own tuners on our search space: pytest tests/search/test_nni_tuners.py"""

from pathlib import Path

import pytest
import yaml
from toy_trial import toy_score, toy_spec

from spos.search.experiment import _check_name
from spos.search.trial import NO_SCORE

CONFIG = Path(__file__).parents[2] / "config_nni_tuners.yml"


def make_tuner(name):
    if name == "TPE":
        from nni.algorithms.hpo.tpe_tuner import TpeTuner

        return TpeTuner(**yaml.safe_load(CONFIG.read_text())["tuner"]["classArgs"])
    if name == "Random":
        from nni.algorithms.hpo.random_tuner import RandomTuner

        return RandomTuner(**yaml.safe_load(CONFIG.read_text())["tuner"]["classArgs"])
    if name == "Evolution":
        from nni.algorithms.hpo.evolution_tuner import EvolutionTuner

        return EvolutionTuner(optimize_mode="maximize", population_size=4)
    pytest.importorskip("hyperopt", reason="NNI's Anneal needs it", minversion="0.2.7")
    from nni.algorithms.hpo.hyperopt_tuner import HyperoptTuner

    return HyperoptTuner("anneal", optimize_mode="maximize")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
@pytest.mark.parametrize("name", ["TPE", "Random", "Evolution", "Anneal"])
def test_tuner_proposes_architectures_whatever_trials_report(name):
    _check_name(name, CONFIG)
    tuner, spec = make_tuner(name), toy_spec()
    tuner.update_search_space(spec.search_space())
    for number in range(25):
        choices = tuner.generate_parameters(number)
        arch = spec.architecture(choices, source=name)
        result = {"default": toy_score(arch.choices), "arch": choices}
        if number % 3:  # not feasible
            result = {"default": NO_SCORE, "macs": 9, "error": {"reason": "too large"}}
        tuner.receive_trial_result(number, choices, result)
        tuner.trial_end(number, True)
