"Writing freely, against transformers' own loop and against the passes that training takes"
import copy
import numpy as np, pytest, torch
from promptbench.base.core import UserError
from promptbench.model.backbone import *
from promptbench.model.batch import make_batch
from promptbench.prompt.bank import ShallowPrompt
from promptbench.prompt.context import ContextPrompt, Front, front_ids
from promptbench.prompt.forward import forward
from promptbench.prompt.inits import new_prompt
from promptbench.measure.generate import generate

torch.set_num_threads(1)
WORDS = [f'w{i}' for i in range(60)]
KINDS = ['llama','gpt2','neox','t5']
SOURCES = ['w1 w2 w3','w9','w4 w5 w6 w7 w8 w1 w2','w20 w21','w22 w9 w11 w12']

def toy(kind, seed=5): return random_backbone(WORDS, dim=16, heads=4, layers=(2,2), kind=kind, seed=seed)
def same(a, b):
    assert [w.text for w in a]==[w.text for w in b] and [w.ended for w in a]==[w.ended for w in b]
    np.testing.assert_allclose([w.logp for w in a], [w.logp for w in b], atol=1e-3)

@pytest.mark.parametrize('kind', KINDS)
def test_greedy_is_what_transformers_writes(kind):
    m = toy(kind); plain = copy.deepcopy(m.model); plain.set_attn_implementation('sdpa')
    for source,w in zip(SOURCES, generate(m, SOURCES, max_new=8)):
        ids = torch.tensor(m.sources([source])); more = {} if m.causal else dict(decoder_start_token_id=0)
        whole = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, eos_token_id=1, pad_token_id=0, use_cache=True, **more)[0]
        new = whole[ids.shape[1] if m.causal else 1:].tolist()
        assert w.text==m.tokenizer.decode(new, skip_special_tokens=True).strip() and w.tokens==len(new) and (w.ended=='end')==(new[-1]==1)

@torch.no_grad()
def slow(m, source, prompt, n):
    "The likeliest tokens by whole passes, one for each; the prompt enters as in training"
    out,total = [],0.
    for _ in range(n):
        logp = forward(m, make_batch([(m.sources([source])[0], [*out,0])]), prompt)[0,-1].log_softmax(-1)
        out.append(int(logp.argmax())); total += float(logp.max())
        if out[-1]==m.tokenizer.eos_token_id: break
    return m.tokenizer.decode(out, skip_special_tokens=True).strip(),total

@pytest.mark.parametrize('how', ['none','shallow','deep','context'])
@pytest.mark.parametrize('kind', KINDS)
def test_prompts_enter_as_in_training(kind, how):
    m = toy(kind); fronts = [' '.join(f'w{i%60}' for i in range(150+7*t))+'\n' for t in range(3)]
    bank = ContextPrompt([Front(f, tuple(front_ids(m, f))) for f in fronts], m) if how=='context' else new_prompt(how, m, length=3, n=3)
    n = len(bank); index = [i%n for i in range(len(SOURCES))]; got = generate(m, SOURCES, bank, index=index, max_new=6)
    for source,i,w in zip(SOURCES, index, got):
        text,total = slow(m, source, bank.select([i]), 6); assert w.text==text; assert abs(w.logp-total)<1e-3

def test_a_shallow_prompt_is_fed_embeddings():
    m = toy('llama'); ids = [30,31,33]; table = m.model.get_input_embeddings().weight.detach()[ids]
    same(generate(m, ['w5 w6'], ShallowPrompt(table[None]), max_new=6), generate(m, [m.tokenizer.decode(ids)+' w5 w6'], max_new=6))

@pytest.mark.parametrize('how', [{}, dict(temperature=.8, top_p=.9, seed=4)])
@pytest.mark.parametrize('kind', KINDS)
def test_company_changes_nothing(kind, how):
    m = toy(kind); bank = new_prompt('deep', m, length=2, n=2); index = [0,1,1,0,1]; whole = generate(m, SOURCES, bank, index=index, max_new=8, **how)
    same(whole, [generate(m, [s], bank, index=[i], max_new=8, **how)[0] for s,i in zip(SOURCES, index)])
    same(whole, generate(m, SOURCES, bank, index=index, max_new=8, token_budget=1, **how))
    same(whole, generate(m, SOURCES[::-1], bank, index=index[::-1], max_new=8, **how)[::-1])

def test_draws_follow_the_model():
    m = toy('llama'); texts = generate(m, ['w1']*2000, max_new=1, temperature=1.); logits = forward(m, make_batch([(m.sources(['w1'])[0],[2])]))[0,0].detach()
    p = logits.softmax(-1); best = int(p.argmax()); share = np.mean([w.logp for w in texts]); want = float((p*p.log()).sum())
    assert abs(share-want)<.1 and len({w.text for w in texts})>10 and best is not None
    assert [w.text for w in generate(m, ['w1']*5, max_new=4, temperature=1., seed=1)]!=[w.text for w in generate(m, ['w1']*5, max_new=4, temperature=1., seed=2)]

def test_stops_and_modes():
    m = toy('llama').train(); whole = generate(m, SOURCES, max_new=8); assert m.model.training
    word = next(w.text.split()[1] for w in whole if len(w.text.split())>1); cut = generate(m, SOURCES, max_new=8, stop=[word,'nothing'])
    for a,b in zip(whole, cut): assert b.text==(a.text.split(word)[0].strip() if word in a.text else a.text) and (b.ended=='stop')==(word in a.text)
    for bad,words in [(dict(max_new=0), 'max_new'), (dict(temperature=-1), 'temperature'), (dict(top_p=0), 'top_p'), (dict(index=[7]), 'index must')]:
        with pytest.raises(UserError, match=words): generate(m, ['w1'], **bad)
