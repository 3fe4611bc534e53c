"Decoder-only models on a CPU compute nothing for padding but attention, and nothing changes by it"
import numpy as np, pytest, torch
from types import SimpleNamespace
from promptbench.measure.rank import rank
from promptbench.model.backbone import random_backbone
from promptbench.prompt import decoder_only
from promptbench.prompt.context import ContextPrompt, Front, front_ids
from promptbench.prompt.inits import new_prompt

WORDS = [f'w{i}' for i in range(40)]

def questions(lengths): return [SimpleNamespace(id=str(i), source=' '.join(WORDS[(i+j)%40] for j in range(n)), choices=('w1','w2 w3','w4 w5 w6 w7'), gold=0) for i,n in enumerate(lengths)]

def prompts(b):
    front = ' '.join(WORDS[:150//4])+'\n\n'
    yield 'none',None
    for kind in ('shallow','deep'): yield kind,new_prompt(kind, b, length=3, seed=0)
    yield 'context',ContextPrompt([Front(front, tuple(front_ids(b, front)))], b)

def scores(b, es, prompt, **how): return np.stack(rank(b, [es], prompt, **how)[0].sum)

@pytest.mark.parametrize('kind', ['llama','qwen','mistral','neox','gpt2'])
def test_scores_are_those_of_the_padded_pass(kind, monkeypatch):
    b = random_backbone(WORDS, kind=kind); es = questions((2,9,4,30,1,17)); seen = []; run = decoder_only.run_unpadded
    monkeypatch.setattr(decoder_only, 'run_unpadded', lambda *a, **k: (seen.append(1), run(*a, **k))[1])
    for name,prompt in prompts(b):
        seen.clear(); mine = scores(b, es, prompt); assert seen, f'{name}: nothing went without padding'
        with monkeypatch.context() as m: m.setattr(decoder_only, '_unpadded_pays', lambda real: False); padded = scores(b, es, prompt)
        alone = np.concatenate([scores(b, [e], prompt) for e in es])
        assert np.abs(mine-padded).max()<1e-4 and np.abs(mine-alone).max()<1e-4, name

@pytest.mark.parametrize('kind', ['llama','qwen','mistral','neox','gpt2'])
def test_one_pass_over_sources_and_choices_is_two(kind, monkeypatch):
    "Also where one choice of some questions is read and none of others, and where the padding of sources stands in the middle"
    from promptbench.measure import rank as page
    b = random_backbone(WORDS, kind=kind); es = questions((22,19,24,40,21,17)); es[2].choices = ('w1','w9'); once = page.read_through; seen = []
    monkeypatch.setattr(page, 'read_through', lambda *a: (seen.append(1), once(*a))[1])
    for name,prompt in prompts(b):
        seen.clear(); mine = rank(b, [es], prompt)[0].sum; assert seen, name
        with monkeypatch.context() as m: m.setattr(page, '_at_once', lambda *a: False); seen.clear(); two = rank(b, [es], prompt)[0].sum; assert not seen
        for x,y in zip(mine, two): np.testing.assert_allclose(x, y, atol=1e-4)

def test_what_learns_takes_the_padded_pass():
    real = torch.tensor([[True,True],[True,False]])
    assert not decoder_only._unpadded_pays(real)
    with torch.no_grad(): assert decoder_only._unpadded_pays(real) and not decoder_only._unpadded_pays(real[:1])

def test_bfloat16_stays_near():
    b = random_backbone(WORDS, kind='llama', dim=64, heads=4); es = questions((2,9,4,30)); front = ' '.join(WORDS*4)+'\n\n'   # long enough for a sum of its own
    for prompt in (None, ContextPrompt([Front(front, tuple(front_ids(b, front)))], b)):
        b.precision = 'fp32'; exact = scores(b, es, prompt); b.precision = 'bf16'
        assert np.abs(scores(b, es, prompt)-exact).max()<.05*np.abs(exact).max()

@pytest.mark.parametrize('kind', ['shallow','deep'])
def test_a_tuning_does_not_depend_on_how_it_is_cut(kind):
    from promptbench.data.suite import Example
    from promptbench.train.tune import TuneConfig, tune
    tasks = [[Example(f't{k}/{i}', ' '.join(WORDS[(i*k+j)%40] for j in range(n)), ' '.join(WORDS[k:k+1+i%3])) for i,n in enumerate((3,11,7))] for k in (1,2)]
    def tables(tokens):
        b = random_backbone(WORDS, kind='llama'); t = tune(b, new_prompt(kind, b, length=2, seed=1), tasks, TuneConfig(steps=3, shots=3, chunk_tokens=tokens)); list(t); return t.bank.table.detach()
    whole = tables(4096); start = new_prompt(kind, random_backbone(WORDS, kind='llama'), length=2, seed=1).table.detach()
    assert (whole-start).abs().max()>1e-4; torch.testing.assert_close(whole, tables(16), atol=1e-5, rtol=0)
