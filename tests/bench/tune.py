"""Tuning 32 tasks of 16 shots: our bank against PEFT's prompt tuning, run task after task with the loop of its documentation

A round is one update of every task. Both sides start from the same prompts on the same weights and see the same ids; what is
compared is the time of a round (a hundred of them are a tuning; nothing in a round depends on its number). The ratio that counts
is fp32 against fp32. PEFT's batches are a task's 16 shots, padded to the longest of them; ours are cut from all tasks.

PEFT's side multiplies with the library torch takes (MKL, in the usual builds); ours with the one that is measured to be faster, which on some processors
is worth more than all the rest. `PROMPTBENCH_LINEAR=mkl` or `onednn` decides; the record says which it was. `ratio_cpu` is the ratio of processor times."""
import copy, json, os
from common import HERE, device, interleave_cpu, middle, parser, ratio_of, repeats, report, small
import torch

SHAPES = { # vocabulary, width, feed-forward, (encoder, decoder) layers, heads, head width
    'small-test': (600, 32, 64, (2,2), 2, 16),
    't5-tiny':  (32128, 256, 1024, (4,4), 4, 64),   # google/t5-efficient-tiny, with its own output layer
    't5-small': (32128, 512, 1024, (8,8), 6, 64),   # google/t5-v1_1-small
    't5-base':  (32128, 768, 2048, (12,12), 12, 64) # google/t5-v1_1-base
}

def lengths(tasks, shots):
    "Source and target token counts of real few-shot tasks (32 templates of 10 datasets, 16 shots; counted by a rule of thumb, words cut every 6 letters)"
    d = json.loads((HERE/'tune_lengths.json').read_text()); return [v[:shots] for v in list(d.values())[::max(1, len(d)//tasks)][:tasks]]

def model(name):
    from promptbench.model.backbone import load_backbone, random_backbone
    if name=='tiny': return load_backbone('tiny')
    v,dim,ff,layers,heads,width = SHAPES[name]
    return random_backbone([f'w{i}' for i in range(v-13)], dim=dim, ff=ff, layers=layers, heads=heads, head_dim=width)

def tasks_of(backbone, counts, seed=0):
    "Random words in texts of the given lengths; a target begins with one of four words"
    from promptbench.base.core import rng
    from promptbench.data.suite import Example
    r = rng('bench', seed); words = [backbone.tokenizer.decode([i]) for i in range(20, 520)]
    text = lambda n: ' '.join(r.choice(words) for _ in range(n-1))
    return [[Example(f't{k}/train/{i}', text(s), text(max(2,t))) for i,(s,t) in enumerate(c)] for k,c in enumerate(counts)]

# --- theirs ----------------------------------------------------------------------------------------------------------
def plain_model(backbone, dtype=torch.float32):
    "The same weights in transformers' own model: its attention, its activation, torch's linear layers"
    from transformers.activations import NewGELUActivation
    m = copy.deepcopy(backbone.model)
    for child in m.modules():
        if isinstance(child, torch.nn.Linear): child.__class__ = torch.nn.Linear
        for name,c in child.named_children():
            if isinstance(c, torch.nn.GELU): setattr(child, name, NewGELUActivation())
    m.set_attn_implementation('sdpa')
    return m.to(backbone.device, dtype)

class Peft:
    "PEFT's prompt tuning of several tasks over one base model; `step(k)` is one pass over task k's loader"
    def __init__(self, backbone, pairs, start, optimizer='adamw', clip=None, dtype=torch.float32):
        from peft import PromptTuningConfig, TaskType, get_peft_model
        from torch.utils.data import DataLoader
        base = plain_model(backbone, dtype); self.device = backbone.device; self.clip = clip
        self.models,self.opts,self.loaders = [],[],[]
        for p in pairs:
            m = get_peft_model(base, PromptTuningConfig(task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=start.shape[0], num_transformer_submodules=1))
            m.prompt_encoder['default'].embedding.weight.data.copy_(start); m.train()
            self.models.append(m.to(self.device)); self.opts.append(self.optimizer(optimizer, m)); self.loaders.append(DataLoader(p, batch_size=len(p), shuffle=True, collate_fn=self.collate, pin_memory=self.device.type=='cuda'))

    @staticmethod
    def optimizer(name, m):
        from transformers.optimization import Adafactor
        params = [p for p in m.parameters() if p.requires_grad]
        return torch.optim.AdamW(params, lr=1e-3) if name=='adamw' else Adafactor(params, lr=1e-3, scale_parameter=False, relative_step=False)

    @staticmethod
    def collate(rows):
        pad = lambda ids,fill: torch.nn.utils.rnn.pad_sequence([torch.tensor(i) for i in ids], batch_first=True, padding_value=fill)
        src,tgt = zip(*rows); ids = pad(src, 0)
        return dict(input_ids=ids, attention_mask=pad([[1]*len(s) for s in src], 0), labels=pad(tgt, -100))

    def step(self, k):
        m,opt = self.models[k],self.opts[k]
        for batch in self.loaders[k]:
            loss = m(**{n:t.to(self.device) for n,t in batch.items()}).loss; loss.backward()
            if self.clip: torch.nn.utils.clip_grad_norm_(m.prompt_encoder.parameters(), self.clip)
            opt.step(); opt.zero_grad()
        return loss.detach()

    def round(self): return [self.step(k) for k in range(len(self.models))]
    def table(self): return torch.stack([m.prompt_encoder['default'].embedding.weight.detach().float() for m in self.models])

# --- ours ------------------------------------------------------------------------------------------------------------
def ours(backbone, start, tasks, precision='fp32', steps=100):
    "A tuning under way; `next` of it is one update of every task"
    from promptbench.train.tune import TuneConfig, tune
    backbone.precision = precision
    return tune(backbone, start, tasks, TuneConfig(steps=steps))

def rounds(tuning, n):
    "`n` updates"
    for _ in range(n): next(tuning)

# --- the measurement -------------------------------------------------------------------------------------------------
def same_prompts(backbone, start, tasks, pairs, steps):
    "Largest difference between our prompts and PEFT's when PEFT's loop is given the paper's optimiser and clipping"
    from promptbench.train.tune import TuneConfig, tune
    backbone.precision = 'fp32'; t = tune(backbone, start, tasks, TuneConfig(steps=steps)); list(t)
    p = Peft(backbone, pairs, start.table[0].detach(), 'adafactor', clip=1.)
    for _ in range(steps): p.round()
    moved = (t.bank.table.detach()-start.table.detach()).abs().max().item()
    return (t.bank.table.detach()-p.table().to(t.bank.table.device)).abs().max().item(), moved

def measure(name, n_tasks, shots, check_steps=3, only=None):
    "Everything about one model: the ratio in fp32, ours in bf16, and whether both sides learn the same prompts"
    from promptbench.model.backbone import pick_precision
    from promptbench.prompt.inits import new_prompt
    from promptbench.model.linear import onednn_pays
    backbone = model(name).to(device()); cuda = backbone.device.type=='cuda'; tasks = tasks_of(backbone, lengths(n_tasks, shots)); pairs = [backbone.pairs(t) for t in tasks]
    start = new_prompt('shallow', backbone, length=4 if small() else 20, seed=0); n = 10 if cuda else 1   # a GPU's rows of ours come in tens; PEFT's rounds are seconds each and all alike
    few = slice(0, max(1, n_tasks//8)); error,moved = same_prompts(backbone, start, tasks[few], pairs[few], check_steps)
    peft = Peft(backbone, pairs, start.table[0].detach()); theirs = peft.round
    out = dict(model=name, parameters=sum(p.numel() for p in backbone.model.parameters()), tasks=n_tasks, shots=shots, updates_timed_per_run=n, source_tokens=sum(len(s) for p in pairs for s,_ in p), target_tokens=sum(len(t) for p in pairs for _,t in p), largest_difference_of_prompts=error, they_moved_by=moved)
    precisions = ['fp32']+['bf16']*(pick_precision('auto', device())=='bf16')
    for precision in [only] if only else precisions:
        backbone.precision = precision; tuning = ours(backbone, start, tasks, precision, 10**6)
        (a,b),cpu = interleave_cpu(lambda: rounds(tuning, n), theirs); a = [t/n for t in a]; r,spread = ratio_of(a, b); r_cpu,spread_cpu = ratio_of([t/n for t in cpu[0]], cpu[1])
        out[precision] = dict(ratio=r, spread=spread, cpu=r_cpu, spread_cpu=spread_cpu, ours_s_per_round=middle(a)[0], peft_fp32_s_per_round=middle(b)[0])
    if not cuda: out['fp32_product'] = 'onednn' if onednn_pays() else 'mkl'
    return out

def main():
    p = parser(__doc__); p.add_argument('--models', default=None, help='comma-separated, of '+', '.join([*SHAPES,'tiny'])); p.add_argument('--tasks', type=int, default=None); p.add_argument('--shots', type=int, default=None); p.add_argument('--only', choices=['fp32'], default=None, help='leave out bf16')
    o = p.parse_args(); cuda = device()=='cuda'
    names = o.models.split(',') if o.models else ['small-test'] if small() else ['t5-base'] if cuda else ['t5-tiny','tiny']
    found = [measure(n, o.tasks or (3 if small() else 32), o.shots or (4 if small() else 16), only=o.only) for n in names]
    for f in found:
        if f['largest_difference_of_prompts']>1e-3: print(f"NOTE {f['model']}: the two sides' prompts differ by {f['largest_difference_of_prompts']:.2g}")
    steps = 100; head = found[0]
    goal = 8 if cuda else 1.5; by_cpu = {} if cuda else dict(ratio_cpu=head['fp32']['cpu'], goal_cpu=goal, spread_cpu=head['fp32']['spread_cpu'], load=os.getloadavg()[0])
    report('tune', head['fp32']['ratio'], goal, model=head['model'], spread=head['fp32']['spread'], **by_cpu, extrapolated=f'a tuning is {steps} equal rounds; timed were {repeats()} of them after a first one',
           ours_s_per_tuning=head['fp32']['ours_s_per_round']*steps, peft_s_per_tuning=head['fp32']['peft_fp32_s_per_round']*steps, models=found)

if __name__=='__main__': main()
