"Layers computed again, bf16 weights with masters, needs by formula, estimates: what lets the paper's scale fit"
import itertools, json, os, subprocess, sys, textwrap
from dataclasses import replace
from pathlib import Path
import pytest, torch
from torch import nn
from promptbench.base.core import UserError
from promptbench.model.backbone import autocast, freeze, load_backbone, random_backbone, save_backbone, unfreeze, weight_hashes
from promptbench.model.batch import make_batch, pack
from promptbench.model.needs import GIB, kept_per_token, memory_needed, moment_numbers, operations, shape_of, tokens_that_fit, work_by_rule
from promptbench.model.recompute import checkpointed
from promptbench.prompt.inits import new_prompt
from promptbench.prompt.packed import target_nll
from promptbench.train.adafactor import Adafactor
from promptbench.train.fit import fit, seeded, token_nll, training
from promptbench.train.pretrain import PretrainConfig, flops, identity, pretrain

WORDS = [f'w{i}' for i in range(80)]
def examples(n=12, source=64, target=16, uneven=True):
    g = torch.Generator().manual_seed(0)
    def ids(top): return torch.randint(13, 80, (top-int(torch.randint(0, top//2, (1,), generator=g))*uneven,), generator=g).tolist()
    return [(ids(source), ids(target)) for _ in range(n)]

# --- layers computed again -------------------------------------------------------------------------------------------
def gradients(b, prompt, batch, dropout, on):
    "Loss and every gradient, with the draws of one seed"
    for p in [*b.model.parameters(), *prompt.parameters()]: p.grad = None
    with training(b.model, dropout), seeded('again'):
        with checkpointed(b, on, draws=dropout>0): nll = target_nll(b, batch, prompt)
        nll.sum().backward()
    return [nll.detach(), *[p.grad for p in [*b.model.parameters(), *prompt.parameters()] if p.grad is not None]]

@pytest.mark.parametrize('trained', [True,False])
@pytest.mark.parametrize('dropout', [0.,.2])
@pytest.mark.parametrize('packed', [True,False])
@pytest.mark.parametrize('prompt', ['none','shallow','deep'])
@pytest.mark.parametrize('kind', ['t5','llama','gpt2'])
def test_layers_computed_again_give_the_same_gradients(kind, prompt, packed, dropout, trained):
    if prompt=='none' and not trained: pytest.skip('nothing is trained')
    b = random_backbone(WORDS, kind=kind, layers=(2,2), dim=16); (unfreeze if trained else freeze)(b)
    bank = new_prompt(prompt, b, length=3, n=2, seed=0); pairs = examples(6, 12, 6); index = [0,1]*3 if prompt!='none' else None
    batch = (pack if packed else make_batch)(pairs, index)
    want,got = (gradients(b, bank, batch, dropout, on) for on in (False,True))
    assert len(want)==len(got)>1
    for x,y in zip(want, got): torch.testing.assert_close(y, x, atol=1e-6, rtol=1e-6)
    assert not any('forward' in vars(m) for m in b.model.modules()) and not any(getattr(s, 'segments', None) for s in b.slots)

@pytest.mark.parametrize('weights', ['fp32','bf16'])
@pytest.mark.parametrize('prompt', ['shallow','deep'])
@pytest.mark.parametrize('kind', ['t5','llama','gpt2'])
def test_layers_computed_again_in_bf16(kind, prompt, weights):
    "Under autocast and over bf16 weights alike"
    b = unfreeze(random_backbone(WORDS, kind=kind, layers=(2,2), dim=16)); b.precision = 'bf16'
    if weights=='bf16': b.model.bfloat16()
    bank = new_prompt(prompt, b, length=3, n=2, seed=0)
    for make in (pack, make_batch):
        want,got = (gradients(b, bank, make(examples(6, 12, 6), [0,1]*3), .2, on) for on in (False,True))
        for x,y in zip(want, got, strict=True): torch.testing.assert_close(y, x, atol=1e-6, rtol=1e-6)

def test_dropout_is_drawn_again_only_where_asked():
    "Without the generator's state a layer would drop other numbers the second time: the test above can fail"
    b = random_backbone(WORDS, layers=(2,2), dim=16); none = new_prompt('none', b); batch = pack(examples(6, 12, 6))
    want = gradients(b, none, batch, .2, False)
    with training(b.model, .2), seeded('again'):
        b.model.zero_grad()
        with checkpointed(b, draws=False): nll = target_nll(b, batch, none)
        nll.sum().backward()
    assert not torch.allclose(b.model.shared.weight.grad, want[1], atol=1e-4)

def test_nothing_is_wrapped_for_good_and_answers_stay():
    b = random_backbone(WORDS, kind='llama', dim=16); batch = make_batch(examples(4, 8, 4)); plain = target_nll(b, batch).detach()
    with checkpointed(b), torch.no_grad(): assert torch.equal(target_nll(b, batch), plain)
    with pytest.raises(ZeroDivisionError), checkpointed(b): 1/0
    assert not any('forward' in vars(m) for m in b.model.modules())

def test_checkpointing_is_no_part_of_a_run(tmp_path):
    "A run without goes on with, from the same checkpoint"
    from test_pretrain import cell, suite
    tasks = suite().tasks('train'); b,p,c = cell('T+P', 'deep'); whole = [r['loss'] for r in pretrain(b, p, tasks, c)]
    b,p,c = cell('T+P', 'deep'); list(itertools.islice(pretrain(b, p, tasks, c, folder=tmp_path, every=4), 5))
    b,p,c = cell('T+P', 'deep'); assert [r['loss'] for r in pretrain(b, p, tasks, replace(c, checkpointing=True), folder=tmp_path, every=4)]==whole
    assert 'checkpointing' not in identity(c)

# --- bf16 weights and fp32 masters -----------------------------------------------------------------------------------
def test_small_steps_need_masters():
    "1.0 in bf16 has neighbours 0.0039 below and 0.0078 above: a step of 1e-4 is rounded away, a hundred of them are not"
    def after(**how):
        w = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16)); o = Adafactor([w], lr=1e-4, **how)
        for _ in range(100): w.grad = torch.ones_like(w); o.step()
        return w.detach().float()
    assert (after(masters=False)==1).all() and (after()-.99).abs().max()<=.002

def test_gradients_of_pieces_are_summed_in_fp32():
    w = nn.Parameter(torch.ones(1, dtype=torch.bfloat16)); o = Adafactor([w], lr=1e-3)
    for x in [1.]+[1/512]*256: (w*x).sum().backward()
    assert o.params[0].grad.item()==pytest.approx(1.5)
    b = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    for x in [1.]+[1/512]*256: (b*x).sum().backward()
    assert b.grad.item()==1.                                            # bf16 alone loses all of the small ones

def test_a_new_optimiser_takes_the_gradients_over():
    w = nn.Parameter(torch.ones(3, dtype=torch.bfloat16)); old,new = Adafactor([w], .1),Adafactor([w], .1)
    w.sum().backward()
    assert old.params[0].grad is None and new.params[0].grad is not None
    new.step(); assert (w.detach().float()-.9).abs().max()<.01 and (old.params[0]==1).all()

def start(weights, seed, tmp_path, **how):
    "A small T5 from a file, as it is kept in memory"
    folder = tmp_path/f'b{seed}'
    if not folder.exists(): save_backbone(random_backbone(WORDS, dim=32, ff=64, layers=(2,2), seed=seed), folder)
    return load_backbone(folder, weights=weights, **how)

def curve(b, masters=True, steps=15, lr=3e-4):
    batches = [pack(examples(8, 16, 6)[i%4:]+examples(8, 16, 6)[:i%4]) for i in range(steps)]
    opt = Adafactor(unfreeze(b).model.parameters(), lr, clip=1., masters=masters)
    with training(b.model, 0.): return [r['loss'] for r in fit([[x] for x in batches], token_nll(b), opt)]

def test_masters_train_as_autocast_does(tmp_path):
    "Over three seeds: bf16 weights with masters stay as near to fp32 as autocast does (measured: .0006 and .0003 of the loss), without they are .11 off"
    off = dict(cast=[], master=[], bare=[])
    for seed in range(3):
        exact = curve(start('fp32', seed, tmp_path))
        cast = curve(start('fp32', seed, tmp_path, precision='bf16'))
        master,bare = (curve(start('bf16', seed, tmp_path), masters=m) for m in (True,False))
        for name,c in (('cast',cast),('master',master),('bare',bare)): off[name].append(abs(c[-1]-exact[-1])/exact[-1])
    mean = {k:sum(v)/len(v) for k,v in off.items()}
    assert mean['cast']<.01 and mean['master']<.01<.05<mean['bare'], off

def test_a_run_with_masters_goes_on_exactly(tmp_path):
    from test_pretrain import cell, suite
    tasks = suite().tasks('train'); b0,_,c = cell('T+P', 'shallow'); save_backbone(b0, tmp_path/'b')
    def begin(): b = load_backbone(tmp_path/'b', weights='bf16'); return b,new_prompt('shallow', b, length=3, seed=0),tasks,c
    one = begin(); whole = [r['loss'] for r in pretrain(*one)]
    list(itertools.islice(pretrain(*begin(), folder=tmp_path/'run', every=3), 5))
    two = begin(); assert [r['loss'] for r in pretrain(*two, folder=tmp_path/'run', every=3)]==whole
    assert weight_hashes(two[0])==weight_hashes(one[0]) and two[0].weights=='bf16'
    saved = json.loads((next((tmp_path/'run').glob('step-*'))/'backbone'/'config.json').read_text()); assert saved['dtype']=='bfloat16'

@pytest.mark.parametrize('kind', ['t5','llama'])
@pytest.mark.parametrize('prompt', ['none','shallow','deep'])
def test_bf16_weights_compute_without_autocast(tmp_path, kind, prompt):
    save_backbone(random_backbone(WORDS, kind=kind, dim=32), tmp_path/'b'); full = load_backbone(tmp_path/'b'); b = load_backbone(tmp_path/'b', weights='bf16')
    with autocast(b): assert (torch.ones(2,2)@torch.ones(2,2)).dtype==torch.float32
    bank = new_prompt(prompt, full, length=3, seed=0)
    for batch in (make_batch(examples(4, 12, 6)), pack(examples(4, 12, 6))): torch.testing.assert_close(target_nll(b, batch, bank), target_nll(full, batch, bank), atol=.05, rtol=.02)
    assert 'bf16 over bf16 weights' in repr(b) and b.clone().weights=='bf16'

# --- needs by formula ------------------------------------------------------------------------------------------------
def kept_bytes(b, batch, prompt, dropout, checkpointing):
    "What torch keeps of a pass forward, each piece of memory once, without weights and prompt"
    own = {p.untyped_storage().data_ptr() for p in [*b.model.parameters(), *prompt.parameters()]}; seen,alive = {},[]
    def keep(t):
        s = t.untyped_storage(); alive.append(t)
        if s.data_ptr() not in own: seen[s.data_ptr()] = s.nbytes()
        return t
    with training(b.model, dropout), checkpointed(b, checkpointing), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t): target_nll(b, batch, prompt).sum()
    return sum(seen.values())

CASES = [(kind, mode, trained, prompt, 0., False) for kind in ('t5','llama') for mode in ('fp32','cast','bf16') for trained,prompt in ((True,'none'),(True,'deep'),(False,'shallow'))]
CASES += [('t5','fp32',True,'shallow',.1,False), ('t5','bf16',True,'shallow',.1,False), ('t5','fp32',True,'deep',0.,True), ('t5','bf16',True,'none',0.,True),
          ('llama','fp32',True,'none',0.,True), ('qwen','fp32',True,'none',0.,False), ('neox','fp32',True,'none',0.,False), ('gpt2','fp32',True,'none',0.,False), ('gpt2','fp32',True,'none',0.,True)]

@pytest.mark.parametrize('kind,mode,trained,prompt,dropout,again', CASES)
def test_what_a_pass_keeps_is_as_the_formula_says(kind, mode, trained, prompt, dropout, again):
    b = random_backbone(WORDS, kind=kind, dim=64, ff=160, layers=(4,4), heads=4); (unfreeze if trained else freeze)(b)
    if mode!='fp32': b.precision = 'bf16'
    if mode=='bf16': b.model.bfloat16()
    p = new_prompt(prompt, b, length=5, seed=0); S,U,n = 64,16,12
    said = kept_per_token(b, trains=('transformer',)*trained+('prompt',)*(prompt!='none'), precision=b.precision, weights=b.weights, checkpointing=again, dropout=dropout, source=S, target=U, prompt=prompt, length=5, device='cpu')
    s = shape_of(b); rest = (2*s.worked if mode=='cast' else 0)+n*U*s.vocab*(4 if mode=='fp32' else 6)
    for make in (pack, make_batch):
        got = kept_bytes(b, make(examples(n, S, U, uneven=False)), p, dropout, again)
        assert .85<(n*(S+U)*said+rest)/got<(1.6 if again else 1.35)

@pytest.mark.parametrize('weights', ['fp32','bf16'])
def test_what_stands_is_what_is_counted(tmp_path, weights):
    "Weights, masters, gradients and statistics of a real update"
    b = start(weights, 0, tmp_path); p = new_prompt('deep', b, length=5, seed=0)
    opt = Adafactor([*unfreeze(b).model.parameters(), *p.parameters()], 1e-3)
    target_nll(b, pack(examples(4)), p).sum().backward()
    grads = sum(t.grad.nbytes for t in opt.params if t.grad is not None); opt.step()
    size = lambda ts: sum(t.nbytes for t in ts)
    got = dict(weights=size(b.model.parameters()), masters=sum(opt.params[i].nbytes for i in opt.low), gradients=grads-p.table.nbytes,
        states=sum(v.nbytes for i,s in opt.state.items() for v in s.values() if torch.is_tensor(v))-4*moment_numbers(tuple(p.table.shape)))
    said = memory_needed(b, weights=weights, precision=b.precision, prompt='deep', length=5, tokens=64)
    for name,n in got.items(): assert said.get(name, 0)*GIB==pytest.approx(n), name

def test_the_formula_meets_what_the_card_measured():
    "T5-XL with masters, 8,192 tokens at a time, on an H100"
    best = json.loads((Path(__file__).parent/'bench'/'gpu_results.json').read_text())['models']['xl']['best']
    said = memory_needed('google/t5-xl-lm-adapt', weights='bf16', tokens=best['budget'], source=139, target=10)['total']*GIB/1e9
    assert .85<said/best['peak_gb']<1.15

def test_work_is_the_rule_of_budgets_and_what_torch_counts(monkeypatch):
    monkeypatch.setattr('promptbench.model.linear.onednn_pays', lambda: False)   # torch counts no products of oneDNN, which some processors do faster
    from torch.utils.flop_counter import FlopCounterMode
    for kind in ('t5','llama','gpt2'):
        b = unfreeze(random_backbone(WORDS, kind=kind, dim=128, layers=(2,3)))
        for trained,trains in ((True,('transformer','prompt')),(False,('prompt',))): assert work_by_rule(b, 1000, trains)==pytest.approx(flops(b, 1000, trained))
        batch = make_batch(examples(4, 40, 12, uneven=False))
        with FlopCounterMode(display=False) as counter: target_nll(b, batch).sum().backward()
        assert operations(b, 4, 40, 12, ('transformer',))/counter.get_total_flops()==pytest.approx(1, abs=.15), kind

def test_tokens_that_fit_fill_what_is_free():
    for checkpointing in (False,True):
        how = dict(weights='bf16', checkpointing=checkpointing)
        free = 40*GIB; tokens = tokens_that_fit('google/t5-xl-lm-adapt', free, **how)
        need = memory_needed('google/t5-xl-lm-adapt', tokens=tokens, prompt='none', **how)
        assert need['activations']+need['logits']==pytest.approx(40*.85, rel=.05)
    assert tokens_that_fit('google/t5-xl-lm-adapt', free)<tokens_that_fit('google/t5-xl-lm-adapt', free, weights='bf16')

# --- the data of a run -----------------------------------------------------------------------------------------------
def streamed(tmp_path, n):
    "What `stream_cell.py` says of so many records"
    folder = tmp_path/str(n); folder.mkdir()
    out = subprocess.run([sys.executable, str(Path(__file__).parent/'stream_cell.py'), str(folder), str(n)], capture_output=True, text=True, env=os.environ|dict(PROMPTBENCH_QUIET='1'))
    assert out.returncode==0, out.stderr[-2000:]
    return json.loads(out.stdout.splitlines()[-1])

@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='a process knows its own memory on Linux')
def test_data_of_a_run_is_streamed(tmp_path):
    "Four times as many of P3's records: an index of nine bytes a record grows, and nothing else does"
    few,many = (streamed(tmp_path, n) for n in (2_500, 10_000))
    assert (few['seen'], many['seen'])==(2_500, 10_000)
    grown = many['rendering_and_batches_mb']-few['rendering_and_batches_mb']
    assert grown<.7*(many['file_mb']-few['file_mb']), (few, many) # as Python objects it would be several times the file
    assert many['opening_mb']<.7, many

# --- estimates -------------------------------------------------------------------------------------------------------
def test_an_estimate_of_a_whole_table_needs_no_network_and_no_model():
    "Six methods, both prompts, shots and seeds of T5-XL on P3, in a process that may not load weights or reach anything"
    code = textwrap.dedent('''
        import socket, promptbench.model.backbone as page
        def no(*a, **k): raise AssertionError('not asked for')
        socket.create_connection = socket.socket.connect = page.load_backbone = no
        from promptbench.train.estimate import *
        from promptbench.base.catalogue import METHODS, columns, trains
        jobs = [dict(stage='pretrain', method=m, prompt=p, seed=s, given={}) for m in METHODS if any(trains(m)) for p in (columns() if trains(m)[1] else ['none']) for s in range(3)]
        jobs += [dict(stage='tune', method=m, prompt=p, seed=s, given=dict(shots=16)) for m in METHODS for p in columns() for s in range(3)]
        devices,facts = devices_found(),known_facts('p3')
        rows = estimate(jobs, devices, 'google/t5-xl-lm-adapt', facts)
        print(estimate_text(rows, devices, facts, refusals(rows, 'google/t5-xl-lm-adapt'))); print(len(jobs), len(rows))''')
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=os.environ|dict(HF_HUB_OFFLINE='1'))
    assert out.returncode==0, out.stderr[-2000:]
    lines = out.stdout.splitlines(); n,m = map(int, lines[-1].split()); assert n==m>30
    assert 'P3 is not read' in out.stdout and sum(line.startswith(('pretrain','tune')) for line in lines)==n

def test_refusals_name_what_would_do():
    from promptbench.train.estimate import ROOM, Device, estimate, known_facts, refusals
    name,facts = 'google/t5-xl-lm-adapt',known_facts('p3')
    def would(gb, **given):
        card = Device('cuda:0', 'a card', gb*GIB, gb*GIB, dict(fp32=1., bf16=1.)); job = dict(stage='pretrain', method='T+P', prompt='deep', seed=0, given=given)
        return [r['would'] for r in refusals(estimate([job], [card], name, facts), name)]
    assert would(80)==[]
    assert 'at most 1,024 tokens at a time' in would(36, weights='bf16', micro_tokens=8192)[0]
    assert 'checkpointing' in would(36, weights='bf16', micro_tokens=8192)[0]
    n = int(would(20)[0][-1].split()[0]); assert n>=2
    how = dict(prompt='deep', weights='fp32', tokens=1024, source=facts.source, target=facts.target)
    assert memory_needed(name, shards=n, **how)['total']<=ROOM*20<memory_needed(name, shards=max(1, n-1), **how)['total']
