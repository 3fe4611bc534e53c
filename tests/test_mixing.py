"""Mixtures as functions of the place: the same for any number of workers and processes, going on anywhere, nothing twice;
and tokenising word by word, which must give the tokenizer's own ids"""
import collections, gzip, itertools, json, os, random, signal, subprocess, sys, tracemalloc
import numpy as np, pytest, torch
from pathlib import Path
from promptbench.base.core import UserError, data_dir, rng
from promptbench.model import tokens
from promptbench.model.batch import make_batch, mtl_batches, prefetch
from promptbench.model.tokens import encode_texts, mtl_order
from promptbench.train.mixing import LISTED, ROUNDS, RULES, Mixing, Order, mix, permuted, quotas, shuffled

HERE = Path(__file__).parent
keys = lambda *w: np.array([rng(*w, i).getrandbits(63) for i in range(ROUNDS)], dtype=np.uint64)

# --- shuffles --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('n', [1,2,3,4,5,7,16,17,255,256,257,1000,65537])
def test_every_place_comes_out_once(n): assert np.array_equal(np.sort(permuted(np.arange(n), n, keys(n))), np.arange(n))

def test_shuffles_look_random():
    "Of 5 things all 120 orders come about equally often; of 1,000 there is neither trend nor neighbourhood"
    seen = collections.Counter(tuple(permuted(range(5), 5, keys('five', i))) for i in range(3000)); x2 = sum((seen[p]-25)**2/25 for p in itertools.permutations(range(5)))
    assert len(seen)==120 and x2<180   # 119 degrees of freedom: 0.03 % lie above
    for i in range(20):
        x = permuted(range(1000), 1000, keys('long', i)); assert abs(np.corrcoef(x, np.arange(1000))[0,1])<.12 and abs(np.corrcoef(x[1:], x[:-1])[0,1])<.12

def test_each_place_may_have_a_size_of_its_own():
    n = np.array([3,10,1000,7,1]); at = np.array([2,9,999,0,0]); k = np.stack([keys(i) for i in range(5)], 1)
    assert permuted(at, n, k).tolist()==[int(permuted([a], m, keys(i))[0]) for i,(a,m) in enumerate(zip(at, n))]

def test_small_shuffles_are_pythons_own():
    for n in (0,1,10,1000):
        order = list(range(n)); rng('t', n).shuffle(order); assert list(shuffled(n, rng('t', n)))==order

def test_a_million_is_shuffled_without_a_list():
    tracemalloc.start(); r = random.Random(1); seen = np.zeros(10**6, dtype=bool)
    for i in shuffled(10**6, r): seen[i] = True
    peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    assert seen.all() and peak<15e6   # one megabyte of marks and a block of 65,536; a list would take forty

# --- quotas ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('rule', RULES)
def test_quotas_add_up_and_nobody_gives_more_than_he_has(rule):
    r = random.Random(3)
    for _ in range(200):
        sizes = [r.choice([0,1,5,100,10_000]) for _ in range(r.randint(1,12))]; cap = r.choice([None,50,3000]); most = [min(s, cap or s) for s in sizes]
        n = r.randint(0, sum(most)); q = quotas(sizes, n, rule=rule, cap=cap, temperature=r.choice([1,2,5.])).tolist()
        assert sum(q)==n and all(0<=a<=b for a,b in zip(q, most))
        if rule=='equal': assert all(a==b or a>=max(q)-1 for a,b in zip(q, most))   # less than the others only where there is no more

def test_rules_mean_what_they_say():
    assert quotas([6000,3000,1000], 100).tolist()==[60,30,10]
    assert quotas([10_000,100], 55, rule='temperature', temperature=2.).tolist()==[50,5]     # 100 : 10
    assert quotas([10_000,100], 60, cap=500).tolist()==[50,10]
    assert quotas([900,90,9], 99, rule='equal').tolist()==[45,45,9]
    for bad,said in [(dict(rule='fair'), 'mixing rule must be one of'), (dict(rule='temperature', temperature=0), 'above 0'), (dict(examples=10**6), 'only 999'), (dict(examples=None, rule='equal'), 'needs the number')]:
        with pytest.raises(UserError, match=said): quotas([900,90,9], **dict(examples=9)|bad)

# --- the stream ------------------------------------------------------------------------------------------------------
def stream(**how): return mix({f't{i}':n for i,n in enumerate([300,40,7,0,120])}, seed=4, **how)

@pytest.mark.parametrize('how', [dict(), dict(examples=200), dict(examples=200, rule='equal'), dict(examples=150, rule='temperature', temperature=3.), dict(cap=30)])
def test_an_epoch_has_its_quotas_and_nothing_twice(how):
    m = stream(**how); n = len(m)
    for epoch in range(3):
        task,example = m.at(range(epoch*n, (epoch+1)*n)); count = collections.Counter(task.tolist())
        assert [count[i] for i in range(5)]==list(m.quotas) and len(set(zip(task.tolist(), example.tolist())))==n and all(0<=e<m.sizes[t] for t,e in zip(task, example))

def test_nothing_comes_again_before_everything_has_come():
    m = stream(examples=40, rule='equal'); laps = [[e for t,e in zip(*m.at(range(k*40, k*40+40))) if t==0] for k in range(27)]   # 11 of 300 an epoch
    flat = [e for l in laps for e in l]; assert len(laps[0])==11 and len(set(flat))==len(flat)==297

def test_a_place_needs_no_other_place():
    m = stream(examples=200); whole = np.array(m.at(range(1000)))
    for part in ([999,3], range(500,520), [777]): assert np.array_equal(np.array(m.at(part)), whole[:,list(part)])
    assert not np.array_equal(whole, np.array(mix(dict(zip(m.names, m.sizes)), examples=200, seed=5).at(range(1000))))

def test_tasks_keep_their_order_when_others_come():
    a,b = mix(dict(x=50), seed=1),mix(dict(y=9, x=50), seed=1); mine = lambda m,i: {e for t,e in zip(*m.at(range(len(m)))) if t==i}
    small = [mix(s, examples=n, seed=1) for s,n in [(dict(x=50), 10), (dict(y=50, x=50), 20)]]; assert mine(small[0], 0)==mine(small[1], 1) and mine(a, 0)==mine(b, 1)

@pytest.mark.parametrize('n,size,mega', [(1000,16,16), (1000,16,4), (64,64,16), (5,8,2), (33,8,2)])
def test_batches_by_length(n, size, mega):
    L = np.array([rng('l', i).randint(1,60) for i in range(n)]); make = lambda seed=0: Order(n, lambda p: (L[p],L[p]%7), batch_size=size, seed=seed, mega=mega); order = make()
    assert sorted(p for b in order for p in b)==list(range(n)) and [order[k] for k in range(len(order))][::-1]==[make()[k] for k in range(len(order))][::-1]
    assert {len(b) for b in order}<={size, n%size} and len(order)==-(-n//size)
    if n==1000: assert list(order)!=list(make(1)) and np.mean([np.ptp(L[b]) for b in order])<30<np.ptp(L)
    with pytest.raises(IndexError): order[len(order)]

# --- workers ---------------------------------------------------------------------------------------------------------
def pairs(): return [([5]*rng('p', i).randint(1,30)+[1],[i%50+2,1]) for i in range(100)]

def test_workers_change_nothing():
    out = {w:[b.src_BT.tolist()+b.tgt_BU.tolist() for b in mtl_batches(pairs(), batch_size=8, seed=0, workers=w)] for w in (0,1,2)}
    assert out[0]==out[1]==out[2] and len(out[0])==13
    assert [b.src_BT.tolist()+b.tgt_BU.tolist() for b in mtl_batches(pairs(), batch_size=8, seed=0, start=9, workers=2)]==out[0][9:]
    packed = [[[p.src_T.tolist() for p in u] for u in mtl_batches(pairs(), batch_size=8, seed=0, row_tokens=60, workers=w)] for w in (0,2)]; assert packed[0]==packed[1]

def test_workers_take_no_draw_from_torch():
    torch.manual_seed(3); want = torch.rand(2); torch.manual_seed(3); list(prefetch(lambda n: n, range(3), workers=1)); assert torch.equal(torch.rand(2), want)

CHILD = """
import os, signal, sys, time
from promptbench.model.batch import prefetch
from promptbench.base.core import UserError
def make(n):
    if n==5: os.kill(os.getpid(), signal.SIGKILL)
    return n
try:
    for n in prefetch(make, range(20), workers=2): print(n, flush=True)
except UserError as e: print('UserError', e)
"""
def test_a_dead_worker_is_an_error_and_no_hang():
    r = subprocess.run([sys.executable,'-c',CHILD], capture_output=True, text=True, timeout=90, env=dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(HERE.parent)))
    *numbers,last = r.stdout.splitlines(); assert numbers==[str(i) for i in range(len(numbers))] and len(numbers)<=5 and last.startswith('UserError') and 'one died' in last, r.stdout+r.stderr

# --- words -----------------------------------------------------------------------------------------------------------
ODD = ['', ' ', 'a', 'a </s> b c','</S> x','x<pad>y <extra_id_0> z','ﬁne ¨ x e\u0301 \u0301b','a\u3000b\u00a0c','tab\tx\r\ny','中文 字 text','emoji 👩\u200d👩 b','end. \n\nQ: … “x” ½ Ⅷ','  two   spaces ','\u2028line','soft\u00adhyphen','naïve façade — 10€','İstanbul ŉ','a\x1cb \x85 c','ͅx y','12,345.67 (a)b[c]','ﷺ ‗ ´a','\ufeffbom','word '*900]

def tiny():
    from transformers import AutoTokenizer
    return AutoTokenizer.from_pretrained(data_dir('backbones','tiny'))

def trained(pre, normal=None, **added):
    "A small Unigram tokenizer with these parts"
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    t = Tokenizer(models.Unigram()); t.pre_tokenizer = pre(pre_tokenizers); t.normalizer = normal and normal(normalizers)
    t.train_from_iterator(ODD+['the cat sat on the mat and ate']*9, trainers.UnigramTrainer(vocab_size=200, special_tokens=['<pad>','</s>','<unk>'], unk_token='<unk>', show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=t, eos_token='</s>', pad_token='<pad>', unk_token='<unk>', **added)

META = lambda p: p.Metaspace(); BOTH = lambda p: p.Sequence([p.WhitespaceSplit(), p.Metaspace()])
T5ISH = lambda n: n.Sequence([n.NFKC(), n.Replace('\n',' '), n.Strip(left=False, right=True)])

@pytest.mark.parametrize('name,make,alone', [('tiny', tiny, True), ('split', lambda: trained(BOTH), True), ('lower', lambda: trained(BOTH, lambda n: n.Sequence([n.NFKC(), n.Lowercase()])), True),
    ('metaspace keeps double spaces', lambda: trained(META), False), ('bytes', lambda: trained(lambda p: p.ByteLevel()), False), ('no split', lambda: trained(lambda p: p.Metaspace(split=False)), False), ('never', lambda: trained(lambda p: p.Metaspace(prepend_scheme='never')), False)])
def test_words_give_the_tokenizers_own_ids(name, make, alone):
    t = make(); assert bool(tokens._word_table(t))==alone
    for limit in (10**6, 5):
        want = [list(x[:limit])+[t.eos_token_id] for x in tokens._tokenize(t, ODD)]
        assert encode_texts(t, ODD, limit)==want and encode_texts(t, ODD[::-1], limit)==want[::-1]

def test_words_on_real_paragraphs(shared):
    t = tiny()
    with gzip.open(shared/'corpus'/'corpus.txt.gz','rt', encoding='utf8') as f: lines = [l.rstrip('\n') for l in itertools.islice(f, 0, 60_000, 60)]
    assert [x[:-1] for x in encode_texts(t, lines, 10**6)]==[list(x) for x in tokens._tokenize(t, lines)]

def test_tokens_added_later_are_seen():
    t = tiny(); encode_texts(t, ['magic word'], 9); t.add_tokens(['magic word']); assert encode_texts(t, ['a magic word'], 9)[0][:-1]==list(tokens._tokenize(t, ['a magic word'])[0])

def test_a_wrong_table_is_found_out():
    t = tiny(); encode_texts(t, ['red blue'], 9); table = tokens._word_table(t); table.known['red'] = bytes([5,0,0,0]*2); table.seen = 999
    with pytest.raises(UserError, match='PROMPTBENCH_WORDS=0'): encode_texts(t, ['red green'], 9)

def test_words_can_be_turned_off(monkeypatch):
    monkeypatch.setenv('PROMPTBENCH_WORDS', '0'); assert tokens._word_table(tiny()) is None

def test_the_table_stays_small(monkeypatch):
    monkeypatch.setattr(tokens, 'MOST_WORDS', 50); t = tiny()
    for i in range(20): encode_texts(t, [f'w{i}x{j}' for j in range(20)], 9)
    assert len(tokens._word_table(t).known)<=70
