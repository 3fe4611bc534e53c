"Numbers that do not fit are refused by every class of settings, before anything is computed"
import pytest
from promptbench.base.core import UserError
from promptbench.studies.table1 import Settings
from promptbench.train.meta import MetaConfig
from promptbench.train.pretrain import PretrainConfig
from promptbench.train.tune import TuneConfig
from promptbench.world.backbone import LMConfig

NAN,INF = float('nan'),float('inf')
ODD = [(cls, dict(given)) for cls,several in (
    (PretrainConfig, [dict(lr=NAN), dict(lr=INF), dict(seed=10**23), dict(seed=-1), dict(seed=.5), dict(dropout=-.1), dict(dropout=NAN),
                      dict(dropout=1), dict(decay=NAN), dict(max_target=0), dict(max_source=-1), dict(batch_size=1.5), dict(examples=NAN)]),
    (MetaConfig, [dict(inner_lr=NAN), dict(flops=INF), dict(seed=10**23), dict(dropout=2), dict(tasks=2.5), dict(max_target=0)]),
    (TuneConfig, [dict(lr=NAN), dict(clip=INF), dict(seed=-1), dict(dropout=NAN), dict(steps=2.5), dict(max_target=0), dict(min_delta=NAN)]),
    (LMConfig, [dict(skill_lr=NAN), dict(heads=0), dict(seed=-1), dict(noise=2), dict(skill_steps=-1)]),
    (Settings, [dict(n_eval=-5), dict(n_eval=0), dict(templates=0), dict(seeds=(10**23,)), dict(seeds=(-1,)), dict(shots=(-1,)), dict(shots=(1.5,)),
                dict(slots=0), dict(pretrain=dict(lr=NAN)), dict(tune=dict(steps=-1)), dict(tune=3), dict(pretrain=dict(meta=dict(inner_lr=-1)))])) for given in several]

@pytest.mark.parametrize('cls,given', ODD, ids=[f'{c.__name__} {g}' for c,g in ODD])
def test_odd_numbers_are_refused(cls, given):
    with pytest.raises(UserError, match='must be'): cls(**given)

def test_usual_numbers_pass():
    for cls in (PretrainConfig, MetaConfig, TuneConfig, LMConfig, Settings): cls()
    TuneConfig(steps=0, shots=0, seed=2**63-1)
