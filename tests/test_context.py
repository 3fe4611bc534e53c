"Examples in context against the concatenated text"
from types import SimpleNamespace
import numpy as np, pytest, torch
from promptbench.base.core import UserError, rng
from promptbench.data.suite import load_suite
from promptbench.model.backbone import *
from promptbench.model.batch import make_batch
from promptbench.prompt.context import ContextPrompt, Front, front_ids, in_context
from promptbench.prompt.forward import forward, sequence_nll
from promptbench.prompt.inits import new_prompt
from promptbench.measure.rank import rank

torch.set_num_threads(1)
WORDS = [f'w{i}' for i in range(60)]
KINDS = ['llama','gpt2','qwen','t5']

def toy(kind, seed=2): return random_backbone(WORDS, dim=16, heads=4, layers=(2,2), kind=kind, seed=seed)

def texts(seed, tasks=3, shots=40):
    "Fronts of different lengths, some longer than what has a sum of its own, and questions with choices"
    r = rng('context', seed); text = lambda lo,hi: ' '.join(r.choice(WORDS) for _ in range(r.randint(lo,hi)))
    fronts = [text(shots*(t+1), shots*(t+1)+9)+'\n\n' for t in range(tasks)]
    def question(i):
        choices = tuple({text(1,4):0 for _ in range(4)})
        return SimpleNamespace(id=f'd/validation/{i}', source=text(1,12), choices=choices, gold=0, target=choices[0])
    return fronts,[[question(i) for i in range(7)] for _ in range(tasks)]

def shown(backbone, fronts, prompt=None, free=None):
    return ContextPrompt([Front(f, tuple(front_ids(backbone, f)), free) for f in fronts], backbone, prompt)

@torch.no_grad()
def joined(backbone, front, e, prompt=None):
    "Scores of the choices, each behind the whole text"
    out = []
    for target in backbone.targets(list(e.choices)):
        b = make_batch([(list(front_ids(backbone, front))+backbone.sources([e.source])[0], target)])
        out.append(-float(sequence_nll(forward(backbone, b, prompt), b.tgt_BU, b.tgt_mask_BU).sum()))
    return out

@pytest.mark.parametrize('learned', [None,'shallow','deep'])
@pytest.mark.parametrize('kind', KINDS)
def test_a_shared_front_scores_as_the_joined_text(kind, learned):
    m = toy(kind); fronts,tasks = texts(1); prompt = learned and new_prompt(learned, m, length=3, n=3)
    for t,(es,s) in enumerate(zip(tasks, rank(m, tasks, shown(m, fronts, prompt)))):
        own = prompt and prompt.select([t])
        for e,got in zip(es, s.sum): np.testing.assert_allclose(got, joined(m, fronts[t], e, own), atol=1e-4)

@pytest.mark.parametrize('kind', KINDS)
def test_budget_and_company_change_nothing(kind):
    m = toy(kind); fronts,tasks = texts(2); bank = shown(m, fronts); a,b = rank(m, tasks, bank),rank(m, tasks, bank, token_budget=1)
    for t,(x,y) in enumerate(zip(a, b)):
        alone = rank(m, [tasks[t]], bank.select([t]))[0]
        for p,q,r in zip(x.sum, y.sum, alone.sum): np.testing.assert_allclose(p, q, atol=1e-4); np.testing.assert_allclose(p, r, atol=1e-4)

def test_a_front_is_read_once(monkeypatch):
    import promptbench.prompt.context as c
    m = toy('llama'); fronts,tasks = texts(3); bank = shown(m, fronts); read = []; real = c.read_front
    monkeypatch.setattr(c, 'read_front', lambda b,ids,*a: (read.append(len(ids)), real(b,ids,*a))[1])
    rank(m, tasks, bank, token_budget=40); assert len(read)==3
    rank(m, tasks, bank); assert len(read)==3
    with torch.no_grad(): next(iter(m.model.parameters())).mul_(1.5)
    fresh = rank(m, tasks, bank); assert len(read)==6
    for t in range(3): np.testing.assert_allclose(fresh[t].sum[0], joined(m, fronts[t], tasks[t][0]), atol=1e-4)

def test_the_first_token_of_a_text_comes_once():
    from test_families import byte_tokenizer
    m = new_backbone(byte_tokenizer(), dim=16, kind='llama'); front,asked = 'the yes is\n\n','no is it'; ids = front_ids(m, front)
    assert ids[0]==m.sources([asked])[0][0]==m.tokenizer.bos_token_id and ids+m.sources([asked])[0][1:]==m.sources([front+asked])[0]
    e = SimpleNamespace(id='0', source=asked, choices=('yes','maybe no'), gold=0); want = []
    for target in m.targets(list(e.choices)):
        b = make_batch([(m.sources([front+asked])[0], target)]); want.append(-float(sequence_nll(forward(m, b), b.tgt_BU, b.tgt_mask_BU).sum().detach()))
    np.testing.assert_allclose(rank(m, [[e]], shown(m, [front]))[0].sum[0], want, atol=1e-4)

def test_calibration_divides_by_what_is_said_anyhow():
    m = toy('llama'); fronts,tasks = texts(4); bank = shown(m, fronts, free='w7 w7')
    for t,(got,raw) in enumerate(zip(rank(m, tasks, bank), rank(m, tasks, bank.plain()))):
        for e,a,am,b,bm in zip(tasks[t], got.sum, got.mean, raw.sum, raw.mean):
            less = np.array(joined(m, fronts[t], SimpleNamespace(source='w7 w7', choices=e.choices))); n = np.array([len(x) for x in m.targets(list(e.choices))])
            np.testing.assert_allclose(a, b-less, atol=1e-4); np.testing.assert_allclose(am, bm-less/n, atol=1e-4)

def test_no_room_is_said_and_little_room_is_counted():
    m = toy('gpt2'); fronts,tasks = texts(5); m.model.config.max_position_embeddings = 200; front = shown(m, fronts).front
    with pytest.raises(UserError, match='no room for a question; give fewer or shorter examples'): rank(m, tasks, shown(m, fronts))
    m.model.config.max_position_embeddings = front+4+8
    scores = rank(m, tasks, shown(m, fronts), max_target=4); long = [len(m.sources([e.source])[0])>8 for e in tasks[0]]
    assert scores[0].cut.tolist()==long and any(long) and not all(long)

def test_real_tokenizers_cut_where_the_joined_text_does():
    pytest.importorskip('gguf')
    try: m = load_backbone('smollm2')
    except UserError as e: pytest.skip(f'smollm2 is not fetched: {e}')
    front = 'Review: a fine film. Good or bad?  good\n\nReview: it is dull\nGood or bad? bad\n\n'
    for between in ('\n\n', '\n', '\n\n\n', '\n###\n'):
        f = front.replace('\n\n', between)
        for q in ('Review: what a joy', '"Quoted"', '12 men', '(so)', 'Éa'): assert front_ids(m, f)+m.sources([q])[0]==m.sources([f+q])[0], (between, q)
    es = [SimpleNamespace(id=str(i), source=f'Review: {w}. Good or bad?', choices=('good','bad','very good indeed'), gold=0) for i,w in enumerate(['what a joy','terrible, long and loud','fine'])]
    long = front*8
    for e,got in zip(es, rank(m, [es], shown(m, [long]))[0].sum): np.testing.assert_allclose(got, joined(m, long, e), atol=2e-3)

@pytest.mark.parametrize('backbone', ['tiny'])
def test_drawn_from_tasks_of_a_suite(backbone):
    m = load_backbone(backbone); tasks = load_suite('microworld', n_eval=20).tasks(role='eval', limit=1)[:2]
    a,b = in_context(m, tasks, 3, 1),in_context(m, tasks, 3, 1); assert a.fronts==b.fronts!=in_context(m, tasks, 3, 2).fronts
    for t,f in zip(tasks, a.fronts):
        for e in t.shots(3, 1): assert e.source in f.text and e.target in f.text

# --- in tables -------------------------------------------------------------------------------------------------------
def test_a_table_has_a_row_for_it(tmp_path):
    from promptbench.measure.evaluate import evaluate
    from promptbench.stats.results import read_rows
    from promptbench.studies.table1 import Settings, cells, jobs
    from promptbench.train.stages import Evaluate
    s = Settings(scale='quick', methods=('none','in context'), shots=(0,4), precision='fp32'); shown = [c for c in cells(s) if c.method=='in context']
    assert [(c.prompt,c.shots) for c in shown]==[('context',4)] and 'in context' in Settings().methods
    job, = [j for j in jobs(s) if j.cell['method']=='in context']; given = dict(job.given)
    assert job.stage=='evaluate' and not job.needs and given['context']==4
    Evaluate().run(given, tmp_path); rows = read_rows(tmp_path); assert set(zip(rows.method, rows.prompt, rows.shots))=={('in context','context',4)}
    m = load_backbone('tiny'); suite = load_suite('microworld', seed=0, n_eval=given['draw']); tasks = suite.tasks(role='eval', limit=1)
    want,_ = evaluate(m, tasks, suite=suite, prompt=in_context(m, tasks, 4, 0), method='in context', n=given['n_eval']); assert want.value.tolist()==rows.value.tolist()
    assert Evaluate().identity(given)!=Evaluate().identity(given|dict(context=0)) and 'context' not in Evaluate().identity(given|dict(context=0))
    with pytest.raises(UserError, match='add a number of shots'): Settings(methods=('in context',), shots=(0,))
