"""A real model on a CPU: SmolLM2 ranks beside lm-evaluation-harness and is tuned beside PEFT, one thread

`DATA` (or `PROMPTBENCH_REAL`) is a folder of datasets with promptsource templates, as `load_suite` takes it; of it a handful of tasks is used. Without it texts of
like lengths are made of random words, and where SmolLM2 was not fetched a small random Llama takes its place: such figures are told, not recorded.

*Ranking*: three groups of tasks, by the length of their choices. The harness (0.4.13, `pip install lm-eval==0.4.13`; no dependency of promptbench) gets the same texts as
requests, the same weights in the same precision, transformers' own fused attention, the faster of torch's two libraries for its linear layers as ours have it,
its sorting, its shortcut for choices of one token, and of several sizes of batch the one at which it is fastest. Both sides tokenise inside the clock. In fp32 log-probabilities must agree to
2e-4 and every decision must be the same. *In context*: eight solved examples stand before every question. *Tuning*: PEFT's prompt tuning with the loop of its documentation, a task's shots as one batch padded
to the longest, against `tune`, one task and eight; the same start, ids, library and precision; prompts of both sides are compared after some steps with the paper's optimiser.

Figures are by the clock and in processor time; other work on the machine does not change the second much, and the ratios are those. Useful tokens are those of distinct sources and of all choices, each once.
The share of the peak divides what had to be multiplied for them (each source once, each choice behind it, the output layer where it is read) by what a large product reaches in the same run."""
import copy, importlib.metadata, importlib.util, json, os, sys
from types import SimpleNamespace
from common import both_times, interleave_cpu, parser, ratio_of, repeats, report, small, middle
import numpy as np, torch
from tune import Peft

HARNESS = '0.4.13'; BATCHES = (1,2,4,8,16); CLOSE = 2e-4
GOALS = dict(one_token=1.3, short=3., long=3.3, in_context=4., tune_1=1.5, tune_8=2.)
GROUPS = dict(one_token=('sst2/review','mrpc/want to know','commonsense_qa/question_to_answer_index','boolq/exam'),
              short=('ag_news/classify_question_first','trec/trec1','social_i_qa/Generate answer','arc_easy/qa_options'),
              long=('piqa/finish_sentence_with_correct_choice','hellaswag/','cosmos_qa/context_description_question_text'))
CONTEXT = 'sst2/review'
TUNED = ('sst2/review','trec/trec1','ag_news/classify_question_first','social_i_qa/Generate answer','arc_easy/qa_options','commonsense_qa/question_answering','mrpc/want to know','rotten_tomatoes/Reviewer Enjoyment')
LIKE = dict(one_token=((43,10,2,1,1),(76,14,2,1,1),(65,5,4,1,1),(156,53,2,1,1)), short=((66,16,4,1,3),(29,3,6,1,3),(30,3,3,2,6),(52,21,4,2,8)), long=((74,44,2,6,36),(70,30,4,10,30),(99,24,4,4,14)))  # source, its spread, choices, their tokens

# --- texts and model -------------------------------------------------------------------------------------------------
def model(weights='fp32'):
    "SmolLM2 where it was fetched, otherwise a small Llama of random weights; kept in fp32 or bf16"
    from promptbench.base.core import UserError
    from promptbench.model.backbone import load_backbone, random_backbone
    words = [f'w{i}' for i in range(500)]
    if not small():
        try: return load_backbone('smollm2', weights=weights)
        except UserError as e: print(f'without SmolLM2: {e}')
    b = random_backbone(words, kind='llama', **(dict(dim=32, layers=(2,2), heads=2) if small() else dict(dim=256, ff=768, layers=(8,8), heads=4, head_dim=64)))
    if weights=='bf16': b.model.to(torch.bfloat16)
    b.precision = weights
    return b

def made(backbone, shape, n, r):
    "Questions of random words with lengths like those of a real task"
    mean,spread,many,low,high = shape
    if backbone.name=='random': words = [f'w{i}' for i in range(500)]
    else: words = [w for w in (backbone.tokenizer.decode([i]) for i in range(1000, 4000)) if w[:1]==' ' and w[1:].isalpha()]; words = [w[1:] for w in words]
    text = lambda k: ' '.join(r.choice(words) for _ in range(max(1, k)))
    return [SimpleNamespace(id=str(i), source=text(round(r.gauss(mean, spread))), choices=tuple(f'{words[c]} {text(r.randint(low, high)-1)}'.split(' ')[0] if high==1 else text(r.randint(low, high)) for c in range(many)), gold=i%many, target='') for i in range(n)]

def sets(data, backbone, n, context):
    "For every group its tasks' questions; examples and questions of the task in context"
    from promptbench.base.core import rng
    if data:
        from promptbench.data.suite import load_suite
        tasks = load_suite(data).tasks(); named = lambda name: next(t for t in tasks if t.name.startswith(name) and t.ranked)
        groups = {g: [named(t).examples('validation')[:n] for t in names] for g,names in GROUPS.items()}
        return groups,(named(CONTEXT).shots(8, 0),named(CONTEXT).examples('validation')[:context])
    r = rng('bench real'); shape = LIKE['one_token'][0]
    def solved(es): return [SimpleNamespace(**{**vars(e), 'target': e.choices[e.gold]}) for e in es]
    return {g: [made(backbone, s, n, r) for s in shapes] for g,shapes in LIKE.items()},(solved(made(backbone, shape, 8, r)),made(backbone, shape, context, r))

def plain(backbone, dtype=torch.float32):
    "The same model with the attention of transformers; its linear layers take the faster of torch's two libraries, as ours do"
    m = copy.deepcopy(backbone.model).to(dtype); m.set_attn_implementation('sdpa')
    return m

# --- the harness -----------------------------------------------------------------------------------------------------
class Harness:
    "lm-evaluation-harness over the same weights"
    def __init__(self, backbone, dtype=torch.float32):
        from lm_eval.models.huggingface import HFLM
        import logging
        logging.getLogger('lm_eval').setLevel(logging.ERROR); logging.getLogger('lm_eval.models.huggingface').setLevel(logging.ERROR)
        self.lm = HFLM(pretrained=plain(backbone, dtype), tokenizer=backbone.tokenizer, backend='causal', batch_size=1, add_bos_token=False)

    def ids(self, source, choice): return self.lm._encode_pair(source, choice)

    def __call__(self, questions, batch):
        "Log-probability of every choice of (source, choices), as the harness is asked for it"
        from lm_eval.api.instance import Instance
        asked = [Instance('loglikelihood', {}, (source, c), 0) for source,choices in questions for c in choices]
        self.lm.batch_size_per_gpu = batch; got = iter(self.lm.loglikelihood(asked, disable_tqdm=True))
        return [np.array([next(got)[0] for _ in choices]) for _,choices in questions]

def asked(es, front=''): return [((front+e.source).rstrip(' '), [' '+c for c in e.choices]) for e in es]

def alike(backbone, lm, es, front=''):
    "Those questions that both sides read as the same ids: the harness moves all white space at the end of a source into the choice"
    def same(e):
        (source,choices), = asked([e], front); src = list(backbone.sources([front+e.source], 10**4)[0])
        return len(src)<=768+len(front) and all(list(src)+list(t)==sum(map(list, lm.ids(source, c)), []) and len(t)==len(lm.ids(source, c)[1]) for c,t in zip(choices, backbone.targets(e.choices)))
    return [e for e in es if same(e)]

# --- how much of the processor is used -------------------------------------------------------------------------------
def peak(dtype):
    "Operations per second of processor time that a large product reaches, by the faster library"
    from promptbench.model.linear import _product
    n = 256 if small() else 1536; x,w = torch.randn(n, n).to(dtype),torch.randn(n, n).to(dtype); ways = [lambda: torch.nn.functional.linear(x, w)]
    if dtype==torch.float32 and torch.backends.mkldnn.is_available(): ways.append(lambda: _product(x, w))
    with torch.no_grad(): return max(2*n**3/max(1e-9, both_times(f)[1]) for f in ways for _ in range(6))

def in_layers(backbone):
    "Weights of the layers, tables of words left out"
    table,head = backbone.model.get_input_embeddings().weight,backbone.model.get_output_embeddings().weight
    return sum(p.numel() for p in backbone.model.parameters())-table.numel()-(0 if head is table else head.numel())

def work(backbone, tasks, front=0):
    "Useful tokens, and the operations they need: products with the weights, attention, and the output layer where it is read"
    c = backbone.model.config; head = backbone.model.get_output_embeddings().weight.numel()
    body = in_layers(backbone)
    said = {}
    for es in tasks:
        for e in es: said.setdefault(e.source, {}).update(dict.fromkeys(e.choices))
    src = [len(s) for s in backbone.sources(list(said))]; tgt = [[len(t) for t in backbone.targets(list(cs))] for cs in said.values()]
    read = sum(src)+sum(n-1 for ts in tgt for n in ts); heads = len(src)+sum(n-1 for ts in tgt for n in ts); width = 4*c.num_attention_heads*getattr(c, 'head_dim', c.hidden_size//c.num_attention_heads)*c.num_hidden_layers
    see = sum(s*(s+1)/2+s*front+sum((n-1)*(front+s+n/2) for n in ts) for s,ts in zip(src, tgt))
    return sum(src)+sum(map(sum, tgt)),2*body*read+2*head*heads+width*see

# --- ranking ---------------------------------------------------------------------------------------------------------
def compare(backbone, lm, tasks, times, prompt=None, front='', before=0, batches=BATCHES, strict=True):
    "Both sides on the same questions; the harness at the best of several sizes of batch"
    from promptbench.measure.rank import rank
    asks = [q for es in tasks for q in asked(es, front)]
    def ours(): return [x for s in rank(backbone, tasks, prompt and prompt()) for x in s.sum]
    def theirs(batch): return lm(asks, batch)
    a,b = ours(),theirs(batches[len(batches)//2]); gap = max(float(np.abs(x-y).max()) for x,y in zip(a,b)); other = sum(int(x.argmax()!=y.argmax()) for x,y in zip(a,b))
    if strict and (gap>CLOSE or other): raise SystemExit(f'the two sides differ: by {gap:.2g}, in {other} decisions')
    part = asks if len(asks)<=60 else asks[::-(-len(asks)//24)]   # which batch suits it best, a part of many questions tells
    by_batch = {k: both_times(lambda: lm(part, k))[1] for k in batches}; best = min(by_batch, key=by_batch.get)
    clock,cpu = interleave_cpu(ours, lambda: theirs(best), times, warmup=0); tokens,flops = work(backbone, tasks, before); o,t = middle(cpu[0])[0],middle(cpu[1])[0]; top = peak(torch.bfloat16 if backbone.precision=='bf16' else torch.float32)
    return dict(ratio=ratio_of(*cpu)[0], spread=ratio_of(*cpu)[1], clock=ratio_of(*clock)[0], ours_s=o, theirs_s=t, tokens_per_s=tokens/o, their_tokens_per_s=tokens/t, share_of_peak=flops/o/top, peak_gflops=top/1e9,
                questions=len(asks), tokens=tokens, largest_gap=gap, other_decisions=other, their_batch=best, their_s_by_batch=by_batch)

def ranking(backbone, data, n, context, times, only, precision):
    "The three groups, and examples in context"
    from promptbench.prompt.context import ContextPrompt, Front, front_ids, front_text
    bf16 = precision=='bf16'; lm = Harness(backbone, torch.bfloat16 if bf16 else torch.float32); out = {}
    groups,(solved,questions) = sets(data, backbone, n, context)
    for name,tasks in groups.items():
        if name not in only: continue
        kept = [alike(backbone, lm, es) for es in tasks]; out[name] = compare(backbone, lm, kept, times, strict=not bf16, batches=(1,4) if small() else BATCHES)|dict(left_out=sum(map(len, tasks))-sum(map(len, kept)))
        told(name, precision, out[name])
    if 'in_context' in only:
        text = front_text(solved); ids = tuple(front_ids(backbone, text)); kept = alike(backbone, lm, questions, text)
        def prompt(): return ContextPrompt([Front(text, ids)], backbone)   # a new one: the front is read inside the clock
        out['in_context'] = compare(backbone, lm, [kept], max(1, times//2), prompt, text, len(ids), batches=(1,4) if small() else (1,2,4,8), strict=not bf16)|dict(front=len(ids), left_out=len(questions)-len(kept))
        told('in_context', precision, out['in_context'])
    return out

# --- tuning ----------------------------------------------------------------------------------------------------------
class CausalPeft(Peft):
    "PEFT's prompt tuning of several tasks over one decoder-only model; a row is source and answer, the loss is the answer's"
    def __init__(self, backbone, pairs, start, optimizer='adamw', clip=None, dtype=torch.float32):
        from peft import PromptTuningConfig, TaskType, get_peft_model
        from torch.utils.data import DataLoader
        base = plain(backbone, dtype); base.config.use_cache = False; self.device,self.clip = backbone.device,clip; self.models,self.opts,self.loaders = [],[],[]
        for p in pairs:
            m = get_peft_model(base, PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=start.shape[0])); m.prompt_encoder['default'].embedding.weight.data.copy_(start); m.train()
            self.models.append(m); self.opts.append(self.optimizer(optimizer, m)); self.loaders.append(DataLoader(p, batch_size=len(p), shuffle=True, collate_fn=self.collate))

    @staticmethod
    def collate(rows):
        pad = lambda ids,fill: torch.nn.utils.rnn.pad_sequence([torch.tensor(i) for i in ids], batch_first=True, padding_value=fill)
        whole = [list(s)+list(t) for s,t in rows]
        return dict(input_ids=pad(whole, 0), attention_mask=pad([[1]*len(w) for w in whole], 0), labels=pad([[-100]*len(s)+list(t) for s,t in rows], -100))

def tuned(backbone, tasks, times, precision):
    "One update of every task on both sides, and whether both learn the same prompts"
    from promptbench.prompt.inits import new_prompt
    from promptbench.train.tune import TuneConfig, tune
    pairs = [[(list(s),list(t)) for s,t in backbone.pairs(es)] for es in tasks]; start = new_prompt('shallow', backbone, length=4 if small() else 20, seed=0); row = start.table[0].detach(); dtype = torch.bfloat16 if precision=='bf16' else torch.float32
    config = lambda n: TuneConfig(steps=n, chunk_tokens=CHUNK, shots=len(tasks[0]))
    t = tune(backbone, start, tasks[:1], config(2)); list(t); p = CausalPeft(backbone, pairs[:1], row, 'adafactor', clip=1., dtype=dtype)
    for _ in range(2): p.round()
    error,moved = (t.bank.table.detach()-p.table()).abs().max().item(),(t.bank.table.detach()-start.table.detach()).abs().max().item()
    if precision=='fp32' and error>1e-4+.05*moved: raise SystemExit(f'the two sides learn other prompts: they differ by {error:.2g} and moved by {moved:.2g}')
    del p; peft = CausalPeft(backbone, pairs, row, dtype=dtype); tuning = tune(backbone, start, tasks, config(10**6))
    clock,cpu = interleave_cpu(lambda: next(tuning), peft.round, times); tuning.close(); o,t = middle(cpu[0])[0],middle(cpu[1])[0]; positions = sum(len(s)+len(t)+len(row) for p in pairs for s,t in p); said = sum(len(t) for p in pairs for _,t in p)
    table = backbone.model.get_input_embeddings().weight.numel(); body = in_layers(backbone); top = peak(dtype)
    return dict(ratio=ratio_of(*cpu)[0], spread=ratio_of(*cpu)[1], clock=ratio_of(*clock)[0], ours_s=o, theirs_s=t, tasks=len(tasks), shots=len(tasks[0]), positions=positions, positions_per_s=positions/o, share_of_peak=4*(body*positions+table*said)/o/top, largest_difference_of_prompts=error, they_moved_by=moved)

CHUNK = 1024 # Positions of ours at a time: what a layer leaves stays in the cache

def tuning(backbone, data, shots, times, only, precision):
    "One task and eight"
    from promptbench.base.core import rng
    from promptbench.data.suite import Example
    if data:
        from promptbench.data.suite import load_suite
        every = load_suite(data).tasks(); tasks = [next(t for t in every if t.name.startswith(name) and t.ranked).shots(shots, 0) for name in TUNED]
    else:
        r = rng('bench real tuning'); tasks = [[Example(e.id, e.source, e.choices[e.gold]) for e in made(backbone, s, shots, r)] for s in (LIKE['one_token'][:3]+LIKE['short'])*2][:8]
    out = {}
    for n in (1,8):
        if f'tune_{n}' in only: out[f'tune_{n}'] = told(f'tune_{n}', precision, tuned(backbone, tasks[:n], times, precision))
    return out

def told(name, precision, figures): print(name, precision, json.dumps({k: float(f'{v:.4g}') for k,v in figures.items() if not isinstance(v, dict)}), flush=True); return figures

def has_harness():
    "Whether it is there; one line if not, or if it is another version"
    if importlib.util.find_spec('lm_eval') is None: print(f'without lm-evaluation-harness: nothing to rank beside (pip install lm-eval=={HARNESS})'); return False
    if (v := importlib.metadata.version('lm_eval'))!=HARNESS: print(f'lm-evaluation-harness is {v}, figures are told of {HARNESS}')
    return True

def main():
    p = parser(__doc__.split('\n')[0]); p.add_argument('data', nargs='?', default=os.environ.get('PROMPTBENCH_REAL'), help='folder of datasets; default: texts are made'); p.add_argument('--questions', type=int, default=None, help='of every task (default 24)')
    p.add_argument('--context', type=int, default=None, help='questions behind examples (default 200)'); p.add_argument('--shots', type=int, default=None, help='of every task that is tuned (default 16)')
    p.add_argument('--only', default=','.join(GOALS), help='comma-separated, of '+', '.join(GOALS)); p.add_argument('--precisions', default='fp32', help='fp32, bf16 or both'); o = p.parse_args(); torch.set_num_threads(o.threads or 1)
    only = o.only.split(','); found = {}; there = has_harness()
    for precision in o.precisions.split(','):
        backbone = model(precision)
        found[precision] = ranking(backbone, o.data, o.questions or (3 if small() else 24), o.context or (6 if small() else 200), repeats(), only, precision) if there else {}
        if {'tune_1','tune_8'}&set(only): found[precision] |= tuning(backbone, o.data, o.shots or (3 if small() else 16), repeats(), only, precision)
    about = dict(backbone=backbone.name, texts='real' if o.data else 'made', load=os.getloadavg()[0]); fp32 = found.get('fp32', {}); counts = backbone.name=='smollm2' or small()
    def say(bench, first, *others):
        "One row of the table, with further claims of its own; a random model's figures are told and not kept"
        f = fp32.get(first, {}); more = {f'{what}_{name}': v for name in others if name in fp32 for what,v in (('ratio',fp32[name]['ratio']),('spread',fp32[name]['spread']),('goal',GOALS[name]))}
        figures = {f'{k}_{p}': v for p,fs in found.items() for k,v in fs.items() if k in (first,*others)}
        report(bench, f.get('ratio') if counts else None, GOALS[first], **({'spread': f['spread']} if f else {}), **more, **about, **({} if bench=='real_tune' else dict(harness=HARNESS if there else 'not here')), **figures)
    if 'tune_1' in only: say('real_tune', 'tune_1', 'tune_8')
    if 'in_context' in only: say('real_context', 'in_context')
    say('real', 'one_token', 'short', 'long')

if __name__=='__main__': main()
