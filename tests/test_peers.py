"""Whole pieces of work beside other people's code: ranking beside a plain loop in fp64, tuning beside PEFT's loop

Nothing of ours computes on the other side: transformers' own models with their own attention, one text at a time or padded as PEFT pads. Where the other comparisons are: deep prompts beside PEFT's prefix and round trips in
test_peft.py, Adafactor in test_fit.py, FOMAML and Reptile beside copies in test_meta.py, packed beside padded rows in test_pack.py, ARG in test_metrics.py, intervals, p-values and the paper's in test_bootstrap.py."""
from types import SimpleNamespace
import numpy as np, pytest, torch
from promptbench.base.core import rng
from promptbench.data.suite import Example
from promptbench.measure.rank import rank
from promptbench.model.backbone import load_backbone, random_backbone, save_backbone
from promptbench.prompt.inits import new_prompt
from promptbench.train.tune import TuneConfig, tune

pytestmark = pytest.mark.filterwarnings('ignore::FutureWarning')
torch.set_num_threads(1)
WORDS = [f'w{i}' for i in range(60)]
KINDS = ['t5','llama','gpt2']

@pytest.fixture(scope='module', params=KINDS)
def place(request, tmp_path_factory):
    "A folder as anybody would load it"
    size = dict(dim=24, heads=4, layers=(2,2), seed=3)
    return save_backbone(random_backbone(WORDS, kind=request.param, **size), tmp_path_factory.mktemp('peers')/request.param)

def theirs(place, dtype=torch.float32):
    "The model in transformers' own class and attention"
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    cls = AutoModelForSeq2SeqLM if AutoConfig.from_pretrained(place).is_encoder_decoder else AutoModelForCausalLM
    return cls.from_pretrained(place, attn_implementation='eager').to(dtype).eval()

def text(r, low, high): return ' '.join(r.choice(WORDS) for _ in range(r.randint(low, high)))

# --- ranking ---------------------------------------------------------------------------------------------------------
@torch.no_grad()
def log_probability(model, source, target):
    "Of the ids `target` after the ids `source`: one text, no padding, no mask, nothing shared"
    if model.config.is_encoder_decoder:
        start = [model.config.decoder_start_token_id, *target[:-1]]
        logits = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([start])).logits[0]
    else: logits = model(input_ids=torch.tensor([source+target])).logits[0,len(source)-1:-1]
    return sum(float(row.log_softmax(-1)[i]) for row,i in zip(logits, target))

def test_ranking_equals_a_plain_loop_in_fp64(place):
    "60 examples of four tasks, unequal in source, number and length of choices: sums, means and every decision"
    r = rng('peers'); ours,model = load_backbone(place),theirs(place, torch.float64); tasks = []
    for many,longest in [(2,1),(3,4),(4,12),(None,6)]:
        tasks.append([SimpleNamespace(id=str(i), source=text(r, 1, 60), gold=0, choices=tuple({text(r, 1, longest): 0 for _ in range(many or r.randint(2,6))})) for i in range(15)])
    for es,scores in zip(tasks, rank(ours, tasks)):
        for e,total,mean,pick,pick_sum in zip(es, scores.sum, scores.mean, scores.pred('mean'), scores.pred('sum')):
            source,targets = ours.sources([e.source])[0],ours.targets(e.choices)
            want = np.array([log_probability(model, source, t) for t in targets]); want_mean = want/[len(t) for t in targets]
            np.testing.assert_allclose(total, want, atol=1e-4, rtol=0); np.testing.assert_allclose(mean, want_mean, atol=1e-4, rtol=0)
            for chosen,all_ in ((pick,want_mean),(pick_sum,want)): assert all_[chosen]>=all_.max()-2e-4 and (chosen==all_.argmax() or np.sort(all_)[-1]-np.sort(all_)[-2]<2e-4)

# --- tuning ----------------------------------------------------------------------------------------------------------
def peft_loop(place, pairs, start, steps, lr):
    "The loop of PEFT's documentation, with the paper's optimiser and clipping: one task, its examples padded to the longest; losses and prompt"
    peft = pytest.importorskip('peft', reason='the PEFT library is not installed: pip install -e .[test]')
    from torch.nn.utils.rnn import pad_sequence
    from transformers.optimization import Adafactor
    base = theirs(place); both = base.config.is_encoder_decoder; pad = lambda rows,fill: pad_sequence([torch.tensor(x) for x in rows], batch_first=True, padding_value=fill)
    model = peft.get_peft_model(base, peft.PromptTuningConfig(task_type='SEQ_2_SEQ_LM' if both else 'CAUSAL_LM', num_virtual_tokens=len(start), num_transformer_submodules=1))
    table = model.prompt_encoder['default'].embedding.weight; table.data.copy_(start)
    if both: batch = dict(input_ids=pad([s for s,_ in pairs], 0), attention_mask=pad([[1]*len(s) for s,_ in pairs], 0), labels=pad([t for _,t in pairs], -100))
    else: batch = dict(input_ids=pad([s+t for s,t in pairs], 0), attention_mask=pad([[1]*len(s+t) for s,t in pairs], 0), labels=pad([[-100]*len(s)+t for s,t in pairs], -100))
    opt = Adafactor([table], lr=lr, scale_parameter=False, relative_step=False, warmup_init=False); losses = []
    for _ in range(steps):
        opt.zero_grad(); loss = model(**batch).loss; loss.backward(); torch.nn.utils.clip_grad_norm_([table], 1.); opt.step(); losses.append(loss.item())
    return losses,table.detach().clone()

@pytest.mark.parametrize('lr', [1e-3,.1])
def test_tuning_a_bank_equals_peft_s_loop_task_after_task(place, lr):
    "Ten steps of three tasks of unequal length: ours in one bank cut into pieces, PEFT's each by itself"
    r = rng('peers tune'); ours = load_backbone(place)
    tasks = [[Example(f't{k}/train/{i}', text(r, 1, 10+15*k), text(r, 1, 1+3*k)) for i in range(6)] for k in range(3)]
    start = new_prompt('shallow', ours, length=5, seed=0); first = start.table[0].detach().clone()
    tuning = tune(ours, start, tasks, TuneConfig(steps=10, lr=lr, length=5, chunk_tokens=150)); rows = list(tuning)
    for k,task in enumerate(tasks):
        losses,table = peft_loop(place, ours.pairs(task), first, 10, lr)
        mine = tuning.bank.table[k].detach(); moved = (table-first).abs().max().item(); off = (mine-table).abs().max().item()
        assert moved>lr and off<=max(2e-5, 2e-3*moved), (off, moved)
        assert [row['losses'][k] for row in rows]==pytest.approx(losses, abs=2e-5)
