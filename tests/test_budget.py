"Running out of memory: the same result from smaller pieces, said once"
import subprocess, sys, warnings
from dataclasses import replace
import pytest, torch
from promptbench.base.core import UserError
from promptbench.model.memory import TokenBudget, out_of_memory, shrinking
from promptbench.model.backbone import random_backbone
from promptbench.prompt.inits import new_prompt
from promptbench.data.suite import Example
from promptbench.train.tune import TuneConfig, tune
import promptbench.train.tune as page

WORDS = [f'w{i}' for i in range(30)]
TASKS = [[Example(f't{k}/{i}', ' '.join(WORDS[(k+i+j)%30] for j in range(3+(5*i+k)%9)), WORDS[(i+k)%4]) for i in range(6)] for k in range(4)]
CONFIG = TuneConfig(steps=6, lr=.05, length=3, chunk_tokens=500)

@pytest.fixture(scope='module')
def backbone(): return random_backbone(WORDS, seed=0)

def run(backbone, config=CONFIG, kind='shallow'):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always'); t = tune(backbone, kind, TASKS, config); rows = list(t)
    return t.bank.table.detach(),rows,[str(w.message) for w in said if 'memory' in str(w.message)]

def small_room(monkeypatch, room, after=0, error=lambda: torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')):
    "From the `after`-th call on, a piece of more than `room` padded tokens does not fit: it fails after its forward pass, in the middle of a step"
    real,calls = page._nll,[0]
    def nll(backbone, piece, prompt):
        calls[0] += 1; out = real(backbone, piece, prompt)
        if calls[0]>after and piece.batch.src_BT.numel()+piece.batch.tgt_BU.numel()>room: raise error()
        return out
    monkeypatch.setattr(page, '_nll', nll)

@pytest.mark.parametrize('kind', ['shallow','deep'])
@pytest.mark.parametrize('after', [0,1,7])
def test_same_prompts_and_one_warning(backbone, monkeypatch, kind, after):
    whole,rows,said = run(backbone, kind=kind); assert not said
    small_room(monkeypatch, 70, after); cut,more,said = run(backbone, kind=kind)
    torch.testing.assert_close(cut, whole, atol=1e-5, rtol=0)
    assert len(said)==1 and 'memory ran out with 500 tokens' in said[0] and 'going on with' in said[0]
    for a,b in zip(rows, more, strict=True): assert a['losses']==pytest.approx(b['losses'], abs=1e-5)

def test_an_error_of_the_cpu_allocator(backbone, monkeypatch):
    whole,*_ = run(backbone); small_room(monkeypatch, 70, error=lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."))
    cut,_,said = run(backbone); torch.testing.assert_close(cut, whole, atol=1e-5, rtol=0); assert len(said)==1

def test_half_a_step_leaves_nothing_behind(backbone):
    "The first pieces have added their gradients when memory runs out; the second attempt starts from zero"
    grads = []
    for room in (10**6, 60):
        bank_run = page.BankRun(backbone, new_prompt('shallow', backbone, length=3, n=4, seed=0), [backbone.pairs(t) for t in TASKS], CONFIG)
        calls,pieces_done = [0],[]
        def work(tokens):
            calls[0] += 1
            if tokens!=bank_run.planned: bank_run.replan(tokens)
            for t in (bank_run.loss_N, bank_run.bank.table.grad): t.zero_()
            for p in bank_run.plan:
                if p.batch.src_BT.numel()>room: raise MemoryError
                page._gradient(backbone, bank_run.bank, p, bank_run.loss_N); pieces_done.append(tokens)
        with warnings.catch_warnings(): warnings.simplefilter('ignore'); TokenBudget(500).run(work)
        grads.append(bank_run.bank.table.grad.clone())
    assert calls[0]>1 and len(set(pieces_done))>1, 'no piece was done before memory ran out: the test shows nothing'
    torch.testing.assert_close(*grads, atol=1e-5, rtol=0)

def test_what_fits_nowhere_is_said(backbone, monkeypatch):
    small_room(monkeypatch, 0)
    with pytest.raises(UserError, match='memory must hold at least 64 tokens at a time.*smaller backbone'): run(backbone, replace(CONFIG, chunk_tokens=256))

def test_other_errors_pass(backbone, monkeypatch):
    def broken(*_): raise RuntimeError('sizes do not match')
    monkeypatch.setattr(page, '_nll', broken)
    with pytest.raises(RuntimeError, match='sizes do not match'): run(backbone)

def test_later_steps_do_not_try_again(backbone):
    budget,tried = TokenBudget(800),[]
    def work(t):
        tried.append(t)
        if t>250: raise MemoryError
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        for _ in range(3): budget.run(work)
    assert tried==[800,400,200,200,200] and len(said)==1

def test_memory_is_free_before_the_next_attempt():
    "The tensors of the failed attempt are gone when the next begins"
    import weakref
    alive,seen = [],[]
    def work(t):
        seen.append([r() is not None for r in alive]); big = torch.ones(4); alive.append(weakref.ref(big))
        if t>100: raise MemoryError
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); shrinking(work, 400)
    assert seen==[[],[False],[False,False]]

@pytest.mark.parametrize('error,yes', [(MemoryError(), True), (torch.OutOfMemoryError('CUDA out of memory'), True), (RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling'), True),
    (RuntimeError('mat1 and mat2 shapes cannot be multiplied'), False), (UserError('out of memory'), False), (KeyboardInterrupt(), False)])
def test_what_counts(error, yes): assert out_of_memory(error) is yes

def test_no_torch_needed():
    assert subprocess.run([sys.executable,'-c','import sys, promptbench.model.memory; print("torch" in sys.modules)'], capture_output=True, text=True, check=True).stdout.strip()=='False'

@pytest.mark.outcome
@pytest.mark.parametrize('packed', [False,True])
def test_an_update_of_training_is_done_again_in_smaller_pieces(backbone, packed):
    "Padded and packed updates: the same losses and weights as with room for all, one warning, and the smaller pieces stay"
    from promptbench.model.batch import make_batch, pack
    from promptbench.model.backbone import unfreeze
    from promptbench.train.adafactor import Adafactor
    from promptbench.train.fit import fit, token_nll
    pairs = backbone.pairs([e for t in TASKS for e in t]); updates = [[pack(pairs[i:i+8])] if packed else make_batch(pairs[i:i+8]) for i in (0,8,16)]
    def go(room):
        b = unfreeze(backbone.clone()); real,pieces = token_nll(b),[]
        def nll(piece):
            out = real(piece)
            if piece.positions>room: raise torch.OutOfMemoryError('CUDA out of memory')
            pieces.append(piece.positions); return out
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always'); rows = list(fit(updates, nll, Adafactor(b.model.parameters(), 1e-3)))
        return rows,[p.detach() for p in b.model.parameters()],pieces,[w for w in said if 'memory ran out' in str(w.message)]
    whole,a,some,no = go(10**6); cut,b,more,said = go(70)
    assert len(some)==3 and not no and len(more)>=6 and max(more)<=70 and len(said)==1
    for x,y in zip(whole, cut, strict=True): assert x['loss']==pytest.approx(y['loss'], abs=1e-5) and x['tokens']==y['tokens'] and x['examples']==y['examples']
    for x,y in zip(a, b): torch.testing.assert_close(x, y, atol=2e-4, rtol=0)
