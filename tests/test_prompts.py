"Prompts against the obvious: typed tokens, and a T5 written out with loops over heads and positions"
import math
import pytest, torch
from promptbench.base.catalogue import PROMPT_KINDS
from promptbench.model.batch import make_batch, Batch
from promptbench.model.backbone import *
from promptbench.prompt.forward import *
from promptbench.prompt.bank import *
from promptbench.prompt.inits import *

torch.set_num_threads(1)

@pytest.fixture(scope='module')
def toy():
    t = random_backbone([f'w{i}' for i in range(20)], dim=8, layers=(2,2), heads=2, head_dim=3, seed=1, relative_attention_num_buckets=8, relative_attention_max_distance=6)
    g = torch.Generator().manual_seed(0)     # untrained models attend almost evenly: sharpen them so that every term of the sum matters
    with torch.no_grad():
        for n,p in t.model.named_parameters():
            if n.endswith(('.q.weight','relative_attention_bias.weight')): p.copy_(torch.randn(p.shape, generator=g))
    return t

PAIRS = [([13,14,15,16,17,18,19,20,21,1],[14,15,16,1]), ([22,23,1],[24,25,26,27,28,29,1]), ([30,1],[31,1])]

# ---- a slow, obvious T5: one example at a time, no padding, no masks but "not the future"

def norm(w, x): return w*x/torch.sqrt((x*x).mean()+1e-6)

def bucket(distance, both_ways, n, far):
    "The number of T5's relative-position bucket, written with plain numbers"
    start = 0
    if both_ways:
        n //= 2
        if distance>0: start = n
        distance = abs(distance)
    else: distance = max(-distance, 0)
    exact = n//2
    if distance<exact: return start+distance
    return start+min(exact+int(math.log(distance/exact)/math.log(far/exact)*(n-exact)), n-1)

def attend(layer, xs, memory, bias, prompt, causal):
    "xs: vectors that ask; memory: vectors that are asked; bias(i,j,head); prompt: (keys, values) [H,P,K] or None"
    H,K = layer.n_heads,layer.key_value_proj_dim; out = []
    for i,x in enumerate(xs):
        heads = []
        for h in range(H):
            part = slice(h*K,(h+1)*K); q = layer.q.weight[part]@x; scores,values = [],[]
            for p in range(0 if prompt is None else prompt[0].shape[1]):
                scores.append(q@prompt[0][h,p]); values.append(prompt[1][h,p])     # always visible, no relative bias
            for j,m in enumerate(memory):
                if causal and j>i: continue
                scores.append(q@(layer.k.weight[part]@m)+bias(i,j,h)); values.append(layer.v.weight[part]@m)
            w = torch.softmax(torch.stack(scores), 0); heads.append(sum(a*v for a,v in zip(w, values)))
        out.append(layer.o.weight@torch.cat(heads))
    return out

def feed(ff, x): return ff.wo.weight@(torch.nn.functional.gelu(ff.wi_0.weight@x, approximate='tanh')*(ff.wi_1.weight@x))

def stack(stack_, xs, c, memory, self_prompts, cross_prompts):
    table = stack_.block[0].layer[0].SelfAttention.relative_attention_bias.weight; dec = memory is not None
    rel = lambda i,j,h: table[bucket(j-i, not dec, c.relative_attention_num_buckets, c.relative_attention_max_distance),h]
    for n,block in enumerate(stack_.block):
        def add(layer, ys): return [x+y for x,y in zip(xs, ys)]
        z = [norm(block.layer[0].layer_norm.weight, x) for x in xs]; xs = add(0, attend(block.layer[0].SelfAttention, z, z, rel, self_prompts[n], dec))
        if dec:
            z = [norm(block.layer[1].layer_norm.weight, x) for x in xs]; xs = add(1, attend(block.layer[1].EncDecAttention, z, memory, lambda i,j,h: 0., cross_prompts[n], False))
        xs = add(2, [feed(block.layer[-1].DenseReluDense, norm(block.layer[-1].layer_norm.weight, x)) for x in xs])
    return [norm(stack_.final_layer_norm.weight, x) for x in xs]

def slow_logits(backbone, src, tgt, deep=None, shallow=None, parts=('encoder','decoder','cross')):
    "Logits [U,V] of one example; deep: [P,X] read as slots x (key,value) x heads x width"
    m,c = backbone.model,backbone.model.config; E,D = len(m.encoder.block),len(m.decoder.block); kv = [None]*(E+2*D)
    if deep is not None:
        t = deep.view(len(deep), E+2*D, 2, c.num_heads, c.d_kv)
        kv = [(t[:,s,0].transpose(0,1), t[:,s,1].transpose(0,1)) for s in range(E+2*D)]
        if 'encoder' not in parts: kv[:E] = [None]*E
        if 'decoder' not in parts: kv[E:E+D] = [None]*D
        if 'cross' not in parts: kv[E+D:] = [None]*D
    emb = m.shared.weight; xs = ([] if shallow is None else list(shallow))+[emb[i] for i in src]
    memory = stack(m.encoder, xs, c, None, kv[:E], None)
    out = stack(m.decoder, [emb[i] for i in [0]+tgt[:-1]], c, memory, kv[E:E+D], kv[E+D:])
    return torch.stack([m.lm_head.weight@x for x in out])

def install(backbone, rows, parts):
    "Put only some parts of a deep prompt on the layers"
    E,D = len(backbone.model.encoder.block),len(backbone.model.decoder.block); S = E+2*D
    kv = rows.view(len(rows), rows.shape[1], S, 2, backbone.heads, backbone.head_dim).permute(2,3,0,4,1,5)
    for s,slot in enumerate(backbone.slots): slot.prompt_kv = (kv[s,0],kv[s,1]) if ('encoder' if s<E else 'decoder' if s<E+D else 'cross') in parts else None

# ---- deep

def test_the_slow_model_is_the_model(toy):
    logits = forward(toy, make_batch(PAIRS))
    for i,(s,t) in enumerate(PAIRS): torch.testing.assert_close(logits[i,:len(t)], slow_logits(toy, s, t), atol=1e-4, rtol=1e-4)

@pytest.mark.parametrize('train', [False,True])
@pytest.mark.parametrize('parts', [('encoder',),('decoder',),('cross',),('encoder','decoder','cross')])
def test_deep_is_the_slow_reference(toy, parts, train):
    t = toy.clone().train(train); bank = new_prompt('deep', t, length=3, n=2, seed=7); index = [1,0,1]; b = make_batch(PAIRS, index=index, multiple=4)
    if len(parts)==3: logits = forward(t, b, bank)
    else: install(t, bank.rows(b.index_B), parts); logits = forward(t, b)
    untouched = forward(toy, b)
    for i,(s,y) in enumerate(PAIRS):
        torch.testing.assert_close(logits[i,:len(y)], slow_logits(t, s, y, deep=bank.table[index[i]], parts=parts), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(logits[i,:len(y)], untouched[i,:len(y)], atol=1e-2)

def test_deep_gradients_are_those_of_the_slow_reference(toy):
    freeze(toy); bank = new_prompt('deep', toy, length=2, n=2, seed=7); b = make_batch(PAIRS[1:], index=[1,0]); slow = bank.select([0,1])
    sequence_nll(forward(toy, b, bank), b.tgt_BU, b.tgt_mask_BU).sum().backward()
    sum(torch.nn.functional.cross_entropy(slow_logits(toy, s, t, deep=slow.table[j]), torch.tensor(t), reduction='sum') for (s,t),j in zip(PAIRS[1:],[1,0])).backward()
    torch.testing.assert_close(bank.table_NPX.grad, slow.table_NPX.grad, atol=1e-4, rtol=1e-3); unfreeze(toy)
    assert bool((bank.table_NPX.grad!=0).all())

def test_the_written_out_sum_equals_the_fused_kernel(toy, monkeypatch):
    import promptbench.model.attention as a
    p = new_prompt('deep', toy, length=3); b = make_batch(PAIRS); want = forward(toy, b, p)
    monkeypatch.setattr(a, '_use_sdpa', lambda *_: False); torch.testing.assert_close(forward(toy, b, p), want, atol=1e-5, rtol=1e-5)

def test_dropout_reaches_the_prompt_columns():
    from types import SimpleNamespace
    from promptbench.model.attention import prompted_attention
    g = torch.Generator().manual_seed(0); q,k,v,pk,pv = (torch.randn(2,2,n,4, generator=g) for n in (3,5,5,2,2)); bias = torch.randn(1,2,3,5, generator=g)
    torch.manual_seed(3); out,_ = prompted_attention(SimpleNamespace(prompt_kv=(pk,pv)), q, k, v, None, scaling=1., dropout=.5, position_bias=bias)
    torch.manual_seed(3); keep = (torch.nn.functional.dropout(torch.ones(2,2,3,7), .5))
    w = torch.softmax(q@torch.cat([pk,k],2).transpose(2,3)+torch.cat([torch.zeros(1,2,3,2),bias],3), -1)*keep
    torch.testing.assert_close(out, (w@torch.cat([pv,v],2)).transpose(1,2))
    assert (keep[...,:2]==0).any() and (keep[...,2:]==0).any()

# ---- shallow

def test_vocabulary_rows_are_typed_tokens(toy):
    words = [15,28,19]; p = prompt_from('shallow', shallow_from_ids(toy, words)[None])
    typed = make_batch([(words+s,t) for s,t in PAIRS])
    torch.testing.assert_close(forward(toy, make_batch(PAIRS), p), forward(toy, typed), atol=1e-5, rtol=1e-5)

def test_shallow_is_the_slow_reference(toy):
    bank = new_prompt('shallow', toy, length=3, n=3, init='normal'); index = [2,0,1]; logits = forward(toy, make_batch(PAIRS, index=index), bank)
    for i,(s,t) in enumerate(PAIRS): torch.testing.assert_close(logits[i,:len(t)], slow_logits(toy, s, t, shallow=bank.table[index[i]]), atol=1e-4, rtol=1e-4)

# ---- banks and contract

@pytest.mark.parametrize('kind', ['shallow','deep'])
def test_a_bank_row_learns_from_its_own_examples_only(toy, kind):
    t = freeze(toy.clone()); bank = new_prompt(kind, t, length=3, n=3); b = make_batch(PAIRS, index=[0,2,2])
    nll = sequence_nll(forward(t, b, bank), b.tgt_BU, b.tgt_mask_BU); nll.sum().backward(); g = bank.table.grad.clone()
    assert not g[1].any() and bool((g[[0,2]]!=0).all())
    alone = bank.select([2]); b2 = make_batch(PAIRS[1:]); sequence_nll(forward(t, b2, alone), b2.tgt_BU, b2.tgt_mask_BU).sum().backward()
    torch.testing.assert_close(alone.table.grad[0], g[2], atol=1e-4, rtol=1e-3)

@pytest.mark.parametrize('kind', list(PROMPT_KINDS))
@pytest.mark.parametrize('init', ['paper','vocab','text','zeros'])
@pytest.mark.parametrize('untied', [True,False])
def test_contract(kind, init, untied):
    t = random_backbone([f'w{i}' for i in range(20)], dim=8, layers=(2,1), tie_word_embeddings=not untied)
    for n in (1,3): check_prompt(lambda: new_prompt(kind, t, length=3, n=n, init=init, text='w1 w2'), t)

def test_paper_inits(toy):
    t = random_backbone([f'w{i}' for i in range(6000)], dim=8); rows = t.model.shared.weight.detach()
    p = new_prompt('shallow', t, n=40).table.detach().reshape(-1,8); at = torch.tensor([int((rows==r).all(1).nonzero()[0]) for r in p]).view(40,20)
    assert int(at.min())>=13 and 4500<int(at.max())<5000 and all(len(set(r))==20 for r in at.tolist())
    d = new_prompt('deep', t, n=2).table.detach(); assert abs(float(d.mean()))<.05 and abs(float(d.std())-1)<.05 and d.dtype==torch.float32

def test_draws_leave_the_global_generator_alone(toy):
    torch.manual_seed(5); want = torch.rand(3); torch.manual_seed(5)
    random_backbone(['a']); new_prompt('deep', toy); new_prompt('shallow', toy); assert torch.equal(torch.rand(3), want)

def test_deep_from_words_keeps_mode_and_hooks(toy):
    t = toy.clone().train(); deep_from_ids(t, [13,14]); assert t.model.training and not any(m._forward_hooks for m in t.model.modules())
