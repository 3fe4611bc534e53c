"The same code for the whole family: decoder-only models beside T5 v1.0, v1.1 and mT5"
import copy, json
import numpy as np, pytest, torch
from types import SimpleNamespace
from promptbench.base.catalogue import PROMPT_KINDS
from promptbench.base.core import UserError, rng
from promptbench.model.batch import Batch, make_batch
from promptbench.model.backbone import *
from promptbench.prompt.decoder_only import *
from promptbench.measure.evaluate import evaluate
from promptbench.prompt.forward import *
from promptbench.prompt.inits import deep_from_ids, new_prompt, shallow_from_ids
from promptbench.prompt.bank import NoPrompt, prompt_from
from promptbench.measure.rank import rank
from promptbench.data.suite import Example
from promptbench.train.tune import TuneConfig, tune

torch.set_num_threads(1)
WORDS = [f'w{i}' for i in range(40)]
KINDS = ['llama','qwen','mistral','neox','gpt2']
PAIRS = [([13,14,15,16,17],[18,19,20]), ([21,22],[23]), ([24],[25,26,27,28])]

def make(kind, **kw): return random_backbone(WORDS, dim=16, layers=(2,2), heads=4, seed=3, kind=kind, **kw)

@pytest.fixture(scope='module', params=KINDS)
def causal(request): return make(request.param)

@pytest.fixture(scope='module')
def llama(): return make('llama')

def untouched(backbone):
    "The model as transformers runs it"
    m = copy.deepcopy(backbone.model); m.set_attn_implementation('eager'); return m

def close(a, b, eps=1e-4): torch.testing.assert_close(a, b, atol=eps, rtol=eps)

# ---- one model, read once or at a stroke

def test_cached_is_the_whole_text_at_once(causal):
    logits = forward(causal, make_batch(PAIRS, multiple=4)); m = untouched(causal)
    for i,(s,t) in enumerate(PAIRS): close(logits[i,:len(t)], m(torch.tensor([s+t])).logits[0,len(s)-1:-1])

def test_nothing_and_an_empty_prompt_are_the_untouched_model(causal):
    b = make_batch(PAIRS); want = forward(causal, b)
    for p in (NoPrompt(), new_prompt('deep', causal, length=0), new_prompt('shallow', causal, length=0)): close(forward(causal, b, p), want, 1e-5)

@pytest.mark.parametrize('kind', ['shallow','deep'])
def test_a_prompt_of_words_is_typed_words(causal, kind):
    words = [30,31,33]; table = dict(shallow=shallow_from_ids, deep=deep_from_ids)[kind](causal, words)
    close(forward(causal, make_batch(PAIRS), prompt_from(kind, table[None])), forward(causal, make_batch([(words+s,t) for s,t in PAIRS])))

def test_sizes_count_key_heads(causal):
    attention = [m for m in causal.model.modules() if type(m).__name__.endswith('Attention')]; p = new_prompt('deep', causal, length=2)
    past = prefill(causal, make_batch(PAIRS)); k,_ = past.kv[0]
    assert causal.causal and causal.slots==attention and k.shape[1]==causal.heads and k.shape[3]==causal.head_dim and p.table.shape[2]==2*2*causal.heads*causal.head_dim

@pytest.mark.parametrize('kind', list(PROMPT_KINDS))
def test_contract(causal, kind):
    for n in (1,3): check_prompt(lambda: new_prompt(kind, causal, length=3, n=n, init='vocab'), causal)

@pytest.mark.parametrize('kind', ['none','shallow','deep'])
def test_answers_share_a_row(causal, kind):
    prompt = new_prompt(kind, causal, length=3); s = PAIRS[0][0]; answers = [[20,21,22],[23],[24,25],[26]]; flat = [i for a in answers for i in a]
    segment = torch.tensor([[k for k,a in enumerate(answers) for _ in a]]); past = encode(causal, make_batch([(s,[1])]), prompt)
    got = decode(causal, past, torch.tensor([flat]), segment_BU=segment)[0].split([len(a) for a in answers])
    for a,g in zip(answers, got): close(g, forward(causal, make_batch([(s,a)]), prompt)[0])
    apart = decode(causal, past, torch.tensor([a+[0]*(3-len(a)) for a in answers]), rows=torch.zeros(4, dtype=torch.long))
    for a,g,r in zip(answers, got, apart): close(g, r[:len(a)])

def test_no_padding_id_is_needed(llama):
    assert llama.model.config.pad_token_id is None
    zeros = make_batch([([13,0,14],[0,15]), ([16],[17])]); m = untouched(llama)                     # id 0 inside a text is text
    close(forward(llama, zeros)[0], m(torch.tensor([[13,0,14,0,15]])).logits[0,2:-1])
    hidden = make_batch(PAIRS); hidden.src_BT[hidden.src_mask_BT==0] = 33; close(forward(llama, hidden), forward(llama, make_batch(PAIRS)), 1e-6)

def test_padding_on_the_left_takes_no_position(llama):
    src = torch.tensor([[33,33,13,14]]); mask = torch.tensor([[0,0,1,1]]); tgt = torch.tensor([[15,16]])
    close(forward(llama, Batch(src, tgt, None, mask)), forward(llama, make_batch([([13,14],[15,16])])))

def test_a_row_of_padding_only_stays_finite(llama):
    b = make_batch(PAIRS); b.src_mask_BT[1] = 0
    for precision in ('fp32','bf16'):
        t = llama.clone(); t.precision = precision; logits = forward(t, b); assert logits.isfinite().all()
    close(forward(llama, b)[[0,2]], forward(llama, make_batch(PAIRS))[[0,2]])

def test_gradients_are_those_of_the_whole_text(llama):
    t = unfreeze(llama.clone()); m = untouched(t); b = make_batch(PAIRS[:1]); s,y = PAIRS[0]
    sequence_nll(forward(t, b), b.tgt_BU, b.tgt_mask_BU).sum().backward()
    torch.nn.functional.cross_entropy(m(torch.tensor([s+y])).logits[0,len(s)-1:-1], torch.tensor(y), reduction='sum').backward()
    for (n,p),q in zip(t.model.named_parameters(), m.parameters()): torch.testing.assert_close(p.grad, q.grad, atol=1e-4, rtol=1e-3, msg=n)

def test_bf16_is_close(llama):
    low = llama.clone(); low.precision = 'bf16'; b = make_batch(PAIRS)
    for kind in ('none','shallow','deep'):
        p = new_prompt(kind, llama, length=3); a,c = (sequence_nll(forward(t, b, p), b.tgt_BU, b.tgt_mask_BU) for t in (llama,low)); torch.testing.assert_close(a, c, atol=.15, rtol=.05)

def test_windows_and_tables_are_limits():
    t = make('mistral', sliding_window=6); m = untouched(t); fits = make_batch([([13,14,15],[16,17,18])])
    close(forward(t, fits)[0], m(torch.tensor([[13,14,15,16,17,18]])).logits[0,2:-1])
    with pytest.raises(UserError, match='looks back 6 positions, and a text of 7 came'): forward(t, fits, new_prompt('shallow', t, length=2))
    with pytest.raises(UserError, match='looks back 4 positions'): forward(make('gpt2', max_position_embeddings=4), fits)

def test_what_does_not_use_the_interface_is_refused():
    from transformers import BloomConfig, BloomForCausalLM
    with pytest.raises(UserError, match='BloomForCausalLM does not'): Backbone('bloom', BloomForCausalLM(BloomConfig(vocab_size=60, hidden_size=16, n_layer=1, n_head=2)), None)

# ---- texts

def test_texts_are_read_and_written_as_they_are_typed(llama):
    ids = llama.tokenizer.convert_tokens_to_ids
    assert llama.sources(['w1 w2 ','']) == [ids(['w1','w2']),[1]] and llama.targets(['w3','',' w3']) == [ids(['w3']),[1],ids(['w3'])]
    closed = make('llama'); closed.eos_source = closed.eos_target = True
    assert closed.sources(['w1 w2'],1) == [[*ids(['w1']),1]] and closed.targets(['w3 w4'],1) == [[*ids(['w3']),1]]
    open_t5 = random_backbone(WORDS); open_t5.eos_target = False
    assert open_t5.targets(['w3 w4']) == [ids(['w3','w4'])] and open_t5.sources(['w3 w4']) == [[*ids(['w3','w4']),1]]

def byte_tokenizer(**kw):
    "Byte-level pieces in the way of GPT-2 and Llama 3: a space belongs to the word behind it"
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast
    t = Tokenizer(models.BPE()); t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False); t.decoder = decoders.ByteLevel()
    t.train_from_iterator(['the yes no maybe yes no is it a yes\nno']*20, trainers.BpeTrainer(vocab_size=330, special_tokens=['<s>','</s>'], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    if kw.pop('first', True): t.post_processor = processors.TemplateProcessing(single='<s> $A', pair='<s> $A $B', special_tokens=[('<s>',0)])
    return PreTrainedTokenizerFast(tokenizer_object=t, bos_token='<s>', eos_token='</s>')

def prefixed_tokenizer():
    "Pieces in the way of Llama 2: every text gets a space in front, whether it has one or not"
    from tokenizers import Tokenizer, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast
    t = Tokenizer(models.BPE(unk_token='<unk>')); t.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ','▁')])
    words = {'<s>':0,'</s>':1,'<unk>':2,'▁':3,'a':4,'y':5,'e':6,'s':7,'▁a':8,'ye':9,'yes':10,'▁yes':11}
    t.model = models.BPE(words, [('▁','a'),('y','e'),('ye','s'),('▁','yes')], unk_token='<unk>')
    return PreTrainedTokenizerFast(tokenizer_object=t, bos_token='<s>', eos_token='</s>', unk_token='<unk>')

@pytest.mark.parametrize('first', [True,False])
def test_an_answer_is_a_continuation(first):
    t = byte_tokenizer(first=first); b = new_backbone(t, kind='llama', dim=16); source,target = b.sources(['the yes is']),b.targets(['no'])
    assert (source[0][0]==0)==first and source[0]+target[0] == t('the yes is no')['input_ids'] == b.sources(['the yes is '])[0]+b.targets([' no'])[0]
    assert b.targets(['\nno'])[0] == t('\nno', add_special_tokens=False)['input_ids']

def test_a_space_is_not_doubled():
    b = new_backbone(prefixed_tokenizer(), kind='llama', dim=16); assert b.targets(['yes',' yes']) == [[11],[11]] and b.sources(['a yes']) == [[8,11]]

# ---- files

@pytest.mark.parametrize('tied', [False,True])
def test_round_trip(tmp_path, causal, tied):
    kind = {'Llama':'llama','Qwen3':'qwen','Mistral':'mistral','GPTNeoX':'neox','GPT2':'gpt2'}[type(causal.model).__name__.replace('ForCausalLM','').replace('LMHeadModel','')]
    first = make(kind, tie_word_embeddings=tied); b = make_batch(PAIRS); again = load_backbone(save_backbone(first, tmp_path/'m'))
    head = again.model.get_output_embeddings().weight; assert (head is again.model.get_input_embeddings().weight)==tied
    assert weight_hashes(again)==weight_hashes(first) and torch.equal(forward(again, b), forward(first, b)) and again.causal
    assert json.loads((tmp_path/'m'/'config.json').read_text())['tie_word_embeddings'] is tied
    assert not set(weight_hashes(make(kind, tie_word_embeddings=tied, )).items())^set(weight_hashes(first).items())

def test_an_own_head_that_equals_the_table_stays_its_own(tmp_path, llama):
    same = llama.clone(); same.model.lm_head.weight = torch.nn.Parameter(same.model.get_input_embeddings().weight.detach().clone())
    again = load_backbone(save_backbone(same, tmp_path/'m')); assert again.model.lm_head.weight is not again.model.get_input_embeddings().weight and not again.model.config.tie_word_embeddings

def test_options_of_loading(tmp_path, llama):
    where = save_backbone(llama, tmp_path/'m'); assert load_backbone(where).targets(['w1'])==[[14]] and load_backbone(where, eos_target=True).targets(['w1'])==[[14,1]]
    closed = load_backbone(where, eos_target=True).clone(); again = save_backbone(closed, tmp_path/'closed'); assert closed.eos_target is True
    assert load_backbone(again).targets(['w1'])==[[14,1]] and load_backbone(again).sources(['w1'])==[[14]] and load_backbone(again, eos_target=False).targets(['w1'])==[[14]]
    once = save_backbone(load_backbone(again, eos_target=False), tmp_path/'open'); assert load_backbone(once).targets(['w1'])==[[14]]

# ---- tune, rank, evaluate

def toy_tasks(n=6):
    r = rng('families'); text = lambda lo,hi: ' '.join(r.choice(WORDS) for _ in range(r.randint(lo,hi))); out = []
    for k in (2,3):
        common = [text(1,3) for _ in range(k)]
        out.append([Example(id=f'd/train/{i}', source=text(1,9), target=common[i%k], choices=tuple(common), gold=i%k) for i in range(n)])
    return out

@pytest.mark.outcome
@pytest.mark.parametrize('family', ['llama','qwen'])
@pytest.mark.parametrize('kind', ['shallow','deep'])
def test_two_tasks_at_once_or_alone(family, kind):
    t = make(family); tasks = toy_tasks(); config = TuneConfig(steps=5, lr=.05, length=3); before = weight_hashes(t)
    def tuned(tasks, **kw): run = tune(t, kind, tasks, TuneConfig(**{**vars(config), **kw})); rows = list(run); return run.bank.table.detach(),rows
    both,rows = tuned(tasks); alone = torch.cat([tuned([x])[0] for x in tasks]); pieces,_ = tuned(tasks, chunk_tokens=30)
    close(alone, both); close(pieces, both); assert weight_hashes(t)==before and all(a>b for a,b in zip(rows[0]['losses'], rows[-1]['losses']))

def one_pass(backbone, source, choice, prompt):
    "Log-probability of a choice by one pass over everything, as an evaluation harness computes it"
    ids = backbone.sources([source])[0],backbone.targets([choice])[0]; b = make_batch([ids]); nll = sequence_nll(forward(backbone, b, prompt), b.tgt_BU, b.tgt_mask_BU)
    return -nll.sum().item(),len(ids[1])

@torch.no_grad()
@pytest.mark.parametrize('kind', ['none','shallow','deep'])
def test_rank_is_one_pass_per_choice(causal, kind):
    tasks = toy_tasks(); bank = new_prompt(kind, causal, length=3, n=2)
    for t,(es,s) in enumerate(zip(tasks, rank(causal, tasks, bank, token_budget=200))):
        for e,total,mean in zip(es, s.sum, s.mean):
            slow = [one_pass(causal, e.source, c, bank.select([t])) for c in e.choices]
            np.testing.assert_allclose(total, [x for x,_ in slow], atol=1e-4); np.testing.assert_allclose(mean, [x/n for x,n in slow], atol=1e-4); assert total.argmax()==np.argmax([x for x,_ in slow])

@torch.no_grad()
def test_rank_is_what_the_untouched_model_says(llama):
    m = untouched(llama)
    for e,s in zip(toy_tasks()[1], rank(llama, toy_tasks()[1:])[0].sum):
        for c,x in zip(e.choices, s):
            a,b = llama.sources([e.source])[0],llama.targets([c])[0]; logp = m(torch.tensor([a+b])).logits[0,len(a)-1:-1].log_softmax(-1)
            assert abs(float(logp.gather(1, torch.tensor(b)[:,None]).sum())-x)<1e-4

def test_evaluate_and_pretrain_run_unchanged():
    from promptbench.data.suite import load_suite
    suite = load_suite('microworld', seed=1, n_eval=6); tasks = suite.tasks(dataset=['commit','ending'], limit=2); words = sorted({w for t in tasks for e in t.examples('validation') for x in (e.source,*e.choices) for w in x.split()})
    t = random_backbone(words, dim=16, kind='llama'); rows,predictions = evaluate(t, tasks, suite=suite, seed=1); assert len(rows)==len(tasks) and predictions.scores_sum.map(lambda s: np.isfinite(s).all()).all()
    from promptbench.train.pretrain import PretrainConfig, pretrain
    start = weight_hashes(t); losses = []
    for row in pretrain(t, new_prompt('shallow', t, length=2), [tasks[0]], PretrainConfig(length=2, examples=12, batch_size=4, dropout=0.)): losses.append(row['loss'])
    assert len(losses)==3 and np.isfinite(losses).all() and weight_hashes(t)!=start

# ---- T5 v1.0, v1.1 and mT5

T5 = dict(v10=dict(tie_word_embeddings=True, feed_forward_proj='relu'), v11=dict(tie_word_embeddings=False, feed_forward_proj='gated-gelu'), mixed=dict(tie_word_embeddings=True, feed_forward_proj='gated-gelu'), plain=dict(tie_word_embeddings=False, feed_forward_proj='relu'))

@pytest.mark.parametrize('version', list(T5))
def test_t5_versions(tmp_path, version):
    t = random_backbone(WORDS, dim=16, seed=4, **T5[version]); m = untouched(t); b = make_batch([(s+[1],y+[1]) for s,y in PAIRS])
    want = m(input_ids=b.src_BT, attention_mask=b.src_mask_BT, labels=b.tgt_BU).logits; close(forward(t, b), want, 1e-5)
    tied = T5[version]['tie_word_embeddings']; head = t.model.lm_head.weight; assert (head is t.model.shared.weight)==tied and t.model.config.scale_decoder_outputs==tied
    states = m.get_decoder()(input_ids=shift_right(t, b.tgt_BU), encoder_hidden_states=encode(t, b).states_BTD, encoder_attention_mask=b.src_mask_BT)[0]
    close(want, states*(16**-.5 if tied else 1)@head.T, 1e-5)
    assert torch.equal(forward(load_backbone(save_backbone(t, tmp_path/'m')), b), forward(t, b))
    for kind in ('shallow','deep'): check_prompt(lambda: new_prompt(kind, t, length=2), t)
    tasks = toy_tasks()
    for es,s in zip(tasks, rank(t, tasks)):
        for e,total in zip(es, s.sum): np.testing.assert_allclose(total, [one_pass(t, e.source, c, None)[0] for c in e.choices], atol=1e-4)

@torch.no_grad()
def test_a_vocabulary_of_250_thousand(tmp_path):
    from transformers import MT5Config, MT5ForConditionalGeneration
    torch.manual_seed(0); V = 250112                                       # mT5's table has more rows than its tokenizer has pieces
    m = MT5ForConditionalGeneration(MT5Config(vocab_size=V, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=2, tie_word_embeddings=False)).eval()
    m.lm_head.weight = torch.nn.Parameter(torch.randn(V,8)*.3); t = Backbone('mt5', m, word_tokenizer(WORDS)); seen = []
    handle = m.get_output_embeddings().register_forward_hook(lambda module, args, out: seen.append(out.numel()))
    tasks = toy_tasks(12); scores = rank(t, tasks); handle.remove()
    for es,s in zip(tasks, scores):
        for e,total in list(zip(es, s.sum))[:2]: np.testing.assert_allclose(total, [one_pass(t, e.source, c, None)[0] for c in e.choices], atol=1e-4)
    tokens = sum(len(t.targets([c])[0]) for es in tasks for e in es for c in e.choices); assert sum(seen)==tokens*V      # logits for tokens that count, never for padding
    assert max(seen)*4<=256e6                                                                                            # and never many at a time
    assert max(new_prompt('shallow', t, length=4, init='vocab').table.shape)==8
