"""Every place that makes a tensor follows the device of the backbone: what runs beside a GPU runs on it.

Each stage runs twice, on the CPU and on a stand-in for a GPU (`standin`) that refuses ordinary tensors, and gives the
same numbers. A tensor made without a device, a `numpy()` too early or a batch that is not moved ends such a test."""
import itertools
from types import SimpleNamespace
import numpy as np, pytest, torch
from meta_cell import WORDS, suite
from standin import DEVICE, Far, standing_in
from promptbench.base.core import rng
from promptbench.data.suite import Dataset, Example, Suite
from promptbench.data.templates import Template
from promptbench.measure.evaluate import evaluate
from promptbench.measure.rank import rank
from promptbench.model import attention, linear
from promptbench.model.attention import WAYS
from promptbench.model.backbone import load_backbone, random_backbone, save_backbone, weight_hashes
from promptbench.model.batch import make_batch, pack
from promptbench.prompt.bank import NoPrompt
from promptbench.prompt.checkpoint import load_checkpoint, save_checkpoint
from promptbench.prompt.forward import check_prompt, forward
from promptbench.prompt.inits import deep_from_ids, new_prompt, shallow_from_ids
from promptbench.prompt.packed import target_nll
from promptbench.train.meta import MetaConfig, meta_methods, meta_train
from promptbench.train.pretrain import PretrainConfig, pretrain
from promptbench.train.tune import TuneConfig, tune

KINDS = ['t5','llama']
PROMPTS = ['shallow','deep']

@pytest.fixture(autouse=True)
def plain_products(monkeypatch):
    "oneDNN is for CPUs: without it, both devices multiply in the same way, to the last bit"
    monkeypatch.setattr(linear, 'onednn_pays', lambda: False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

def here(x):
    "Anything as plain numbers"
    if isinstance(x, torch.Tensor): return x.detach().cpu().tolist()
    if isinstance(x, dict): return {k:here(v) for k,v in x.items() if k!='seconds'}
    if isinstance(x, (list,tuple)): return [here(v) for v in x]
    return x.tolist() if isinstance(x, np.ndarray) else x

def both(stage):
    "What a stage gives on the CPU and on the stand-in, compared; the stage gets the device"
    want = here(stage(torch.device('cpu')))
    with standing_in() as device: got = here(stage(device))
    compare(got, want)
    return got

def compare(got, want):
    assert type(got)==type(want)
    if isinstance(want, dict):
        assert set(got)==set(want)
        for k in want: compare(got[k], want[k])
    elif isinstance(want, list):
        assert len(got)==len(want)
        for g,w in zip(got, want): compare(g, w)
    elif isinstance(want, float): assert got==pytest.approx(want, rel=1e-6, abs=1e-6, nan_ok=True)
    else: assert got==want

def backbone_on(device, kind='t5', **kw):
    b = random_backbone(WORDS, seed=0, kind=kind, **kw).to(device)
    assert b.device==device
    return b

def is_there(device, *modules):
    "All weights are where they should be"
    return all(p.device==device for m in modules for p in m.parameters())

# ---- the stand-in itself

def test_it_computes_what_the_cpu_computes_and_says_where_it_is():
    with standing_in() as device:
        x = torch.arange(6., device=device).view(2,3)
        assert x.device==DEVICE and not x.is_cpu and (x*x).sum().item()==55 and x.cpu().numpy().sum()==15
        assert x[torch.tensor([1])].tolist()==[[3,4,5]] and (x+torch.tensor(1.)).device==DEVICE
        assert torch.zeros_like(x).device==x.new_zeros(2).device==x.to(torch.float64).device==DEVICE

@pytest.mark.parametrize('wrong', [
    lambda x: x+torch.ones(3), lambda x: torch.cat([x, torch.ones(1,3)]), lambda x: x.index_select(0, torch.tensor([0])),
    lambda x: torch.ones(2,3)[x[:,0].long()], lambda x: torch.zeros(3).add_(x[0]), lambda x: torch.where(x>1, x, torch.zeros(2,3)),
    lambda x: x.numpy(), lambda x: np.asarray(x), lambda x: x@torch.eye(3), lambda x: torch.zeros(()).add_(x.sum())])
def test_it_refuses_what_a_gpu_refuses(wrong):
    with standing_in() as device:
        with pytest.raises((RuntimeError,TypeError)): wrong(torch.arange(6., device=device).view(2,3))

def test_tied_weights_stay_tied_and_gradients_come_back():
    with standing_in() as device:
        b = backbone_on(device)
        assert b.model.shared.weight is b.model.encoder.embed_tokens.weight and type(b.model.shared.weight) is Far
        x = torch.ones(2, requires_grad=True)
        (x.to(device)*3).sum().backward()
        assert x.grad.tolist()==[3,3] and b.to('cpu').device.type=='cpu' and type(b.model.shared.weight) is not Far

def careless(backbone, prompt, index_B): # As `placed` of a prompt, but for the second table
    return prompt.table.expand(len(index_B),-1,-1)+torch.zeros(prompt.table.shape[1:]),None

def test_a_careless_place_is_caught():
    "A prompt that makes one tensor without saying where works on a CPU, and nowhere else"
    def stage(device):
        b = backbone_on(device)
        p = new_prompt('shallow', b, length=2)
        p.placed = lambda backbone, index_B: careless(backbone, p, index_B)
        return forward(b, make_batch([([14,15],[16])]), p)
    stage(torch.device('cpu'))
    with pytest.raises(RuntimeError, match='Expected all tensors to be on the same device'): both(stage)

def test_a_batch_that_is_not_moved_is_caught():
    with standing_in() as device:
        b = backbone_on(device)
        with pytest.raises(RuntimeError, match='same device'): b.model(input_ids=torch.tensor([[14,15]]), decoder_input_ids=torch.tensor([[0]]))

def test_loading_goes_to_the_device_of_the_process(monkeypatch, tmp_path):
    from promptbench.base import machine
    b = random_backbone(WORDS, seed=0)
    bank = new_prompt('shallow', b, length=2)
    save_backbone(b, tmp_path/'b')
    save_checkpoint(tmp_path/'c', prompt=bank, backbone=b, reference=tmp_path/'b')
    monkeypatch.setattr(machine, 'own_device', lambda: str(DEVICE))
    with standing_in():
        loaded,prompt,_ = load_checkpoint(tmp_path/'c', precision='auto')
        assert is_there(DEVICE, loaded.model, prompt, load_backbone(tmp_path/'b').model) and loaded.precision=='fp32'
        assert is_there(torch.device('cpu'), load_backbone(tmp_path/'b', device='cpu').model)

# ---- stages of training

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('packed', [True,False])
@pytest.mark.parametrize('method,prompt', [('T-only','none'), ('T+P','shallow'), ('T+P','deep'), ('P-only','deep')])
def test_pretrain(method, prompt, packed, kind):
    config = PretrainConfig(method=method, prompt=prompt, length=3, examples=16, batch_size=8, lr=3e-3, prompt_lr=.03, packed=packed, row_tokens=60)
    def stage(device):
        b = backbone_on(device, kind)
        p = new_prompt(prompt, b, length=3)
        rows = list(pretrain(b, p, suite().tasks('train'), config, micro_tokens=80))
        assert is_there(device, b.model, p)
        return rows,list(p.parameters()),[w.double().sum() for w in b.model.parameters()]
    assert len(both(stage)[0])==2

def written_out(query, key, value, *, score_mod, block_mask, scale):
    "FlexAttention as one reads it; its own kernel takes no stand-in tensors"
    H,Q,K = query.shape[1],query.shape[2],key.shape[2]
    h,i,j = (torch.arange(n, device=query.device) for n in (H,Q,K))
    h,i = h[:,None,None],i[:,None]
    score = query@key.transpose(2,3)*scale
    if score_mod is not None: score = score_mod(score, 0, h, i, j)
    assert block_mask.kv_indices.device==query.device
    return score.masked_fill(~block_mask.mask_mod(0, h, i, j), -1e9).softmax(-1)@value

@pytest.mark.parametrize('way', [w for w in WAYS if w!='fused'])
@pytest.mark.parametrize('kind', KINDS)
def test_every_way_of_attention_in_a_packed_row(way, kind, monkeypatch):
    monkeypatch.setattr(attention, '_flex_kernel', lambda compiled: written_out)
    pairs = [([14,15,16,17],[18,19]), ([20],[21]), ([22,23,24],[25,26,27])]
    def stage(device):
        b = backbone_on(device, kind)
        for p in (NoPrompt(), new_prompt('deep', b, length=2), new_prompt('shallow', b, length=2)):
            yield target_nll(b, pack(pairs), prompt=p, attention=way)
    both(lambda device: list(stage(device)))

SHOTS = [[Example(f't{k}/{i}', ' '.join(WORDS[(i+j*k)%18] for j in range(2+i+k)), ' '.join(WORDS[(i*k+j)%18] for j in range(1+i%3))) for i in range(5)]
         for k in range(3)]

@pytest.mark.parametrize('prompt', PROMPTS)
@pytest.mark.parametrize('kind,changes', [
    ('t5',dict()), ('t5',dict(dropout=.1)), ('t5',dict(patience=1, min_delta=.5)), ('t5',dict(chunk_tokens=60)),
    ('llama',dict()), ('llama',dict(chunk_tokens=60))], ids=str)   # on a CPU a decoder-only model draws its dropout without padding
def test_tune(kind, prompt, changes):
    config = TuneConfig(**dict(steps=3, lr=.03, length=3)|changes)
    def stage(device):
        b = backbone_on(device, kind, dropout=.1 if config.dropout else 0.)
        tuning = tune(b, prompt, SHOTS, config)
        rows = list(tuning)
        assert is_there(device, tuning.bank)
        return rows,tuning.bank.table,tuning.bank.select([1]).table,tuning.bank.repeat(2).table
    rows = both(stage)[0]
    assert len(rows)<3 if config.patience else len(rows)==3

@pytest.mark.parametrize('kind,changes', [('t5',dict()), ('t5',dict(inner='sgd', dropout=.1, support='same')), ('llama',dict(inner='adam'))], ids=str)
@pytest.mark.parametrize('method', meta_methods())
@pytest.mark.parametrize('prompt', PROMPTS)
def test_meta(method, prompt, kind, changes):
    config = MetaConfig(**dict(method=method, prompt=prompt, length=3, tasks=3, steps=2, batch_size=2, inner_lr=.03, lr=3e-3, prompt_lr=.03, dropout=0.)|changes)
    def stage(device):
        b = backbone_on(device, kind, dropout=config.dropout)
        p = new_prompt(prompt, b, length=3)
        run = meta_train(b, p, suite().tasks('train'), config, before=not config.dropout, micro_tokens=60)
        rows = list(itertools.islice(run, 2))
        assert is_there(device, b.model, p)
        return rows,p.table
    assert len(both(stage)[0])==2

# ---- going on after a stop

def unmoved(rows): return [{k:v for k,v in r.items() if k!='seconds'} for r in rows]

def going_on(tmp_path, make, steps):
    "A run that is broken off after a checkpoint and goes on on the other device, as if never broken off"
    whole = here(unmoved(make(torch.device('cpu'), None)))
    for a,b in [('cpu','there'), ('there','cpu')]:
        with standing_in() as device:
            on = dict(cpu=torch.device('cpu'), there=device)
            folder = tmp_path/f'{a}-{b}'
            first = make(on[a], folder)
            list(itertools.islice(first, steps))
            first.close() if hasattr(first, 'close') else None
            got = here(unmoved(make(on[b], folder)))
        compare(got, whole)

def test_pretraining_goes_on(tmp_path):
    config = PretrainConfig(method='T+P', prompt='deep', length=3, examples=24, batch_size=8, lr=3e-3)
    def make(device, folder):
        b = backbone_on(device)
        return pretrain(b, new_prompt('deep', b, length=3), suite().tasks('train'), config, folder=folder, every=2)
    going_on(tmp_path, make, 2)

def test_tuning_goes_on(tmp_path):
    def make(device, folder): return tune(backbone_on(device), 'shallow', SHOTS, TuneConfig(steps=5, lr=.03, length=3, patience=3), folder=folder, every=2)
    going_on(tmp_path, make, 3)

@pytest.mark.parametrize('method', meta_methods())
def test_meta_learning_goes_on(tmp_path, method):
    config = MetaConfig(method=method, prompt='shallow', length=3, tasks=2, steps=1, batch_size=2, updates=3, inner_lr=.03, lr=3e-3)
    def make(device, folder):
        b = backbone_on(device)
        return meta_train(b, new_prompt('shallow', b, length=3), suite().tasks('train'), config, folder=folder, every=2)
    going_on(tmp_path, make, 2)

def test_a_checkpoint_comes_back_onto_the_device(tmp_path):
    def stage(device):
        b = backbone_on(device)
        bank = new_prompt('deep', b, length=2, n=3)
        save_checkpoint(tmp_path/'c', backbone=b, prompt=bank, state=dict(a=torch.ones(2, device=device), b=3))
        again,prompt,_ = load_checkpoint(tmp_path/'c', device=device)
        assert again.device==device==prompt.table.device and weight_hashes(again)==weight_hashes(b)
        return prompt.table,forward(again, make_batch([([14,15],[16])]), prompt.select([2]))
    both(stage)

# ---- measuring

def choices(seed=0):
    r = rng('device', seed)
    def text(lo, hi): return ' '.join(r.choice(WORDS) for _ in range(r.randint(lo,hi)))
    def example(i, k): return SimpleNamespace(id=f'd/{i}', source=text(1,9), choices=tuple(text(1,4) for _ in range(k)), gold=0, target='')
    return [[example(i, k) for i in range(5)] for k in (2,3,4)]

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('prompt', ['none',*PROMPTS])
def test_rank(kind, prompt):
    def stage(device):
        b = backbone_on(device, kind)
        for n in {1, 1 if prompt=='none' else 3}:
            got = rank(b, choices(), new_prompt(prompt, b, length=2, n=n), token_budget=120)
            assert all(isinstance(x, np.ndarray) for s in got for x in s.sum)
            yield [s.sum for s in got],[s.mean for s in got],[s.correct() for s in got]
    both(lambda device: list(stage(device)))

def ranked_suite():
    ask = Template('ask', '{{who}} likes {{color}} what color does {{who}} likes ||| {{color}}', 'red ||| blue ||| green')
    rows = [dict(who=WORDS[i%4], color=WORDS[4+i%3]) for i in range(8)]
    return Suite('toy', [Dataset('d', 'c', 'eval', dict(train=rows, validation=rows), [ask])])

@pytest.mark.parametrize('kind', KINDS)
def test_evaluate(kind):
    def stage(device):
        s = ranked_suite()
        rows,predictions = evaluate(backbone_on(device, kind), s.tasks('eval'), suite=s)
        return rows.to_dict('list'),predictions.to_dict('list')
    both(stage)

# ---- prompts: where they start, what they say, how they travel

@pytest.mark.parametrize('kind', KINDS)
def test_starts(kind):
    from promptbench.base.catalogue import INITS
    def stage(device):
        b = backbone_on(device, kind)
        for p in PROMPTS:
            for init in INITS:
                made = new_prompt(p, b, length=3, n=2, init=init, text='red blue')
                assert made.table.device==device
                yield made.table
            yield new_prompt(p, b, length=3, n=2, init=made).table
        yield shallow_from_ids(b, [14,15])
        yield deep_from_ids(b, [14,15])
    both(lambda device: list(stage(device)))

@pytest.mark.parametrize('kind', KINDS)
def test_the_contract_of_a_prompt(kind):
    with standing_in() as device:
        b = backbone_on(device, kind)
        for p in PROMPTS: check_prompt(lambda: new_prompt(p, b, length=2, n=2).to(device), b)

@pytest.mark.parametrize('kind', KINDS)
def test_looking_at_prompts(kind):
    from promptbench.prompt.neighbours import attention_mass, deep_norms, nearest_words, prompt_map
    def stage(device):
        b = backbone_on(device, kind)
        s,d = (new_prompt(p, b, length=2, n=2) for p in PROMPTS)
        tables = [nearest_words(b, s, k=3), deep_norms(b, d), *[attention_mass(b, SHOTS[0], p) for p in (s,d)]]
        return [t.to_dict('list') for t in tables],here_all(prompt_map([s, new_prompt('shallow', b, length=2, seed=1)]))
    both(stage)

def here_all(x): return [t.to_dict('list') if hasattr(t, 'to_dict') else here(t) for t in (x if isinstance(x, tuple) else (x,))]

@pytest.mark.parametrize('kind', KINDS)
def test_to_peft_and_back(kind, tmp_path):
    from promptbench.prompt.peft import export_peft, import_peft
    def stage(device):
        b = backbone_on(device, kind)
        for p in PROMPTS if b.causal else ['shallow']:
            bank = new_prompt(p, b, length=2, n=2)
            place = tmp_path/f'{device.type}-{p}'
            export_peft(b, bank, place, index=1, base='some/model')
            back = import_peft(place, b)
            assert back.table.device==device
            yield back.table
    both(lambda device: list(stage(device)))

# ---- panels and lessons

@pytest.mark.parametrize('kind', KINDS)
def test_the_losses_of_a_landscape(kind):
    from promptbench.lab.lessons import losses_of
    def stage(device):
        b = backbone_on(device, kind)
        pairs = b.pairs(SHOTS[0])
        for p in PROMPTS:
            bank = new_prompt(p, b, length=2, n=4)
            yield losses_of(b, bank.table.detach(), pairs, kind=p, rows=10)
            yield losses_of(b, bank.table.detach().cpu().numpy(), pairs, kind=p)
    both(lambda device: list(stage(device)))

def test_a_landscape_along_a_path():
    from promptbench.lab.lessons import landscape, losses_of
    def stage(device):
        b = backbone_on(device)
        path = [new_prompt('shallow', b, length=2, seed=i).table.detach() for i in range(4)]
        def loss_of(tables): return losses_of(b, tables.float().view(-1,2,b.dim), b.pairs(SHOTS[0]))
        grid,places = landscape(loss_of, path, points=3)
        return grid.to_dict('list'),places
    both(stage)

def test_a_run_that_is_watched():
    from promptbench.lab.diagnosis import diagnose, guess_loss, probe
    from promptbench.lab.monitor import pretraining_run, tuning_run
    def stage(device):
        b,s = backbone_on(device),ranked_suite()
        tasks = s.tasks('eval')
        for prompt in PROMPTS:
            run = tuning_run(b, prompt, tasks, TuneConfig(steps=3, shots=4, length=2), suite=s, n=4)
            rows,own,bank = run.make(None, 1)
            rows = list(rows)
            yield rows,run.measure(own, bank),probe(own, bank, run.examples),guess_loss(own, run.examples),diagnose(rows, steps=3)
        config = PretrainConfig(method='T+P', prompt='shallow', length=2, examples=8, batch_size=4)
        run = pretraining_run(b, new_prompt('shallow', b, length=2), suite().tasks('train'), config)
        rows,own,bank = run.make(None, 1)
        yield list(rows),probe(own, bank, run.examples)
    both(lambda device: list(stage(device)))

def test_answers_and_what_a_prompt_says():
    from promptbench.lab.playground import answers, seen
    def stage(device):
        b = backbone_on(device)
        e = seen(b, dict(who='ann', color='red'), '{{who}} likes {{color}} ||| {{color}}', 'red ||| blue')
        for p in (None, new_prompt('shallow', b, length=2), new_prompt('deep', b, length=2)): yield answers(b, e, p)
    def told(x): return x.to_dict('list') if hasattr(x, 'to_dict') else str(x)
    both(lambda device: [told(x) for x in stage(device)])

def test_the_memory_of_the_exact_meta_gradient():
    "Its gradient of gradients runs in torch.func, whose tensors the stand-in does not see through"
    from promptbench.train.maml import maml_memory
    def stage(device):
        b = backbone_on(device)
        batch = make_batch(b.pairs(SHOTS[0][:2])).to(device)
        return maml_memory(b, new_prompt('shallow', b, length=2), [batch], batch)
    both(stage)
