"""Logs as other projects write them, with numbers of our own: {file name: (bytes, flags, points)}.

Of each the flags that `scaling.logs` needs beside it, and the points (run, params, tokens, loss) that it has;
a run that is named after its file is "". Binary files are built by encoders of a few lines.
"""
import gzip
import json
import sqlite3
import struct
import tempfile
from pathlib import Path


def varint(n: int) -> bytes:
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def message(*parts) -> bytes:
    """A protobuf message of (number, value): an int, a float (of 32 bits), text or bytes."""
    out = b""
    for number, value in parts:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        elif isinstance(value, float):
            out += varint(number << 3 | 5) + struct.pack("<f", value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def wandb_file(name: str, config: dict, history: list[dict]) -> bytes:
    """A .wandb file: a LevelDB log of protobuf records."""
    def items(values):
        return [message(*((2, part) for part in key.split("/")), (16, json.dumps(value)))
                for key, value in values.items()]
    told = message(*((1, item) for item in items(config)))
    records = [message((17, message((1, "id"), (4, told), (8, name))))]
    records += [message((2, message(*((1, item) for item in items(row))))) for row in history]
    out = b":W&B\xe1\xbe\x00"
    for record in records:
        first = True
        while record or first:
            left = -len(out) % 32768 or 32768
            if left < 7:
                out += bytes(left)
                continue
            part, record = record[:left - 7], record[left - 7:]
            kind = (1 if first else 4) if not record else (2 if first else 3)
            out += struct.pack("<IHB", 0, len(part), kind) + part
            first = False
    return out


def event_file(*scalars) -> bytes:
    """A TensorBoard event file of (step, tag, value); tensors where the tag ends with /t."""
    events = [message((3, "brain.Event:2"))]
    for step, tag, value in scalars:
        held = (2, float(value))
        if tag.endswith("/t"):
            held = (8, message((1, 1), (5, struct.pack("<f", value))))
        events.append(message((2, step), (5, message((1, message((1, tag), held))))))
    out = b""
    for event in events:
        event = varint(1 << 3 | 1) + bytes(8) + event  # the time comes first
        out += struct.pack("<QI", len(event), 0) + event + bytes(4)
    return out


def trackio_file(*runs) -> bytes:
    """trackio's SQLite file of (run, config, rows)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "project.db")
        db = sqlite3.connect(path)
        db.execute("PRAGMA page_size = 512")
        db.execute("CREATE TABLE configs (run_id, run_name TEXT, config TEXT)")
        db.execute("CREATE TABLE metrics (id INTEGER PRIMARY KEY, run_id, run_name, step, metrics)")
        for name, config, rows in runs:
            db.execute("INSERT INTO configs VALUES (?, ?, ?)", (name, name, json.dumps(config)))
            for step, row in rows:
                db.execute("INSERT INTO metrics (run_id, run_name, step, metrics) VALUES (?, ?, ?, ?)",
                           (name, name, step, json.dumps(row)))
        db.commit()
        db.close()
        return path.read_bytes()


NANOGPT = """tokens per iteration will be: 1,000
number of parameters: 0.10M
step 0: train loss 4.1000, val loss 4.2000
iter 0: loss 4.1100, time 90.11ms, mfu -100.00%
step 100: train loss 2.1000, val loss 2.2000
iter 100: loss 2.0500, time 9.11ms, mfu 1.00%
step 200: train loss 1.8000, val loss 2.0000
"""
RESUMED = NANOGPT + """tokens per iteration will be: 1,000
Resuming training from out
number of parameters: 0.10M
step 100: train loss 2.1500, val loss 2.2500
step 200: train loss 1.8100, val loss 2.0100
step 300: train loss 1.7100, val loss 1.9100
"""
SECOND = NANOGPT + """tokens per iteration will be: 2,000
number of parameters: 0.30M
step 0: train loss 4.0000, val loss 4.0500
step 100: train loss 1.9000, val loss 1.9500
"""
FORK = """2025-01-02 03:04:05 INFO - \x1b[32mstep=100 | train_loss=2.5 | val_loss=2.6 | aux_loss=0.1\x1b[0m
2025-01-02 03:05:05,678 INFO - step=200 | train_loss=2.3 | val_loss=2.45 | lr=0.001 | aux_loss=0.1
2025-01-02 03:05:06,000 INFO - step 200: loss is falling
"""
LLMC = """s:0 tel:11.0000
s:0 trl:10.9000 lr:0.000001 norm:15.20
s:0 eval:0.2500
s:50 tel:6.5000
s:100 tel:5.5000
s:100 trl:5.4000 lr:0.000000 norm:0.40
"""
LLMC_CONSOLE = """| num_parameters        | 2000000                                            |
val loss 11.000000
step    1/100 | loss 10.999900 (+nanz)| norm 15.0 (+nanz)| lr 1e-06 | 500 ms | 40.1% bf16 MFU | 99 tok/s
step   50/100 | loss 6.600000 (+0.10z)| norm 1.0 (+0.20z)| lr 6e-04 | 500 ms | 40.1% bf16 MFU | 99 tok/s
val loss 6.500000
step  100/100 | loss 5.600000 (+0.10z)| norm 1.0 (+0.20z)| lr 6e-04 | 500 ms | 40.1% bf16 MFU | 99 tok/s
val loss 5.500000
"""
MEGATRON = """ iteration       50/     100 | consumed samples: 800 | lm loss: 5.100000E+00 | loss scale: 1.0 |
 validation loss at iteration 50 | lm loss value: 5.000000E+00 | lm loss PPL: 1.484132E+02 |
 samples/sec: 9.1 | iteration      100/     100 | lm_loss: 4.100000E+00 | loss scale: 1.0 |
 validation results at iteration 100 | lm_loss value: 4.000000E+00 | lm_loss_ppl value: 5.459E+01 |
"""
MEGATRON_NEW = """Effective Tera Flops per GPU: 41.3 and total parameters 0.001 B
 iteration       50/     100 | consumed samples: 400 | consumed tokens:       50000 | lm loss: 5.1E+00 |
Effective Tera Flops per GPU: 41.3 and total parameters 0.001 B
 validation loss at iteration 50 on validation set | lm loss value: 5.000000E+00 | lm loss PPL: 1.5E+02 |
 iteration      100/     100 | consumed samples: 800 | consumed tokens:      100000 | lm loss: 4.1E+00 |
 validation loss at iteration 100 on validation set | lm loss value: 4.000000E+00 | lm loss PPL: 5.5E+01 |
"""
TORCHTITAN = """[titan] 03:04:05 - root - INFO - Model llama3 debug \x1b[31msize: 1,000,000 total parameters
[titan] - INFO - \x1b[31mstep: 50  \x1b[32mloss:  5.1000  \x1b[34mtps: 1,000  \x1b[35mmfu: 9.00%\x1b[39m
[titan] - INFO - validate step: 50  loss:  5.0000  memory:  9.00GiB(9.00%)  tps: 1,000
[titan] - INFO - step: 100  loss:  4.1000  tps: 1,000  mfu: 9.00%
[titan] - INFO - validate step: 100  loss:  4.0000  memory:  9.00GiB(9.00%)  tps: 1,000
"""
OLMO = """2025-01-02 03:04:05 host:0 olmo.train:816 INFO [step=50/100,epoch=0]
    train/CrossEntropyLoss=5.10
    train/ZLoss=0.10
    throughput/total_tokens=50,000
2025-01-02 03:04:05 host:0 olmo.train:816 INFO [eval_step=1/2]
    eval/c4-validation/CrossEntropyLoss=5.00
    eval/c4-validation/Perplexity=148.4
2025-01-02 03:04:06 host:0 olmo.train:816 INFO [step=100/100,epoch=0]
    train/CrossEntropyLoss=4.10
    throughput/total_tokens=100,000
    eval/c4-validation/CrossEntropyLoss=4.00
"""
COMPOSER = """[batch=50/100]:
\t Train time/token: 50000
\t Train loss/train/total: 5.1000
[Eval batch=2/2] Eval on eval data:
\t Eval metrics/eval/LanguageCrossEntropy: 5.0000
[batch=100/100]:
\t Train time/token: 100000
\t Train loss/train/total: 4.1000
\t Eval metrics/eval/LanguageCrossEntropy: 4.0000
"""
KERAS = """Epoch 1/2
25/50 [====>.....] - ETA: 1s - loss: 6.1000\x08\x08
50/50 [==========] - 2s 40ms/step - loss: 5.6000 - accuracy: 0.1 - val_loss: 5.0000 - val_accuracy: 0.2
Epoch 2/2
50/50 \x1b[32m━━━━━━\x1b[0m 2s 40ms/step - loss: 4.6000 - val_accuracy: 0.3 - val_loss: 4.0000
"""
FAIRSEQ = """INFO | fairseq_cli.train | num. shared model params: 1,000,000 (num. trained: 1,000,000)
INFO | train_inner | epoch 001:     50 / 100 loss=7.4, ppl=168.9, wps=9, ups=1, wpb=1000, num_updates=50, lr=1
INFO | valid | epoch 001 | valid on 'valid' subset | loss 7.2 | ppl 147.03 | wpb 1000 | num_updates 50
INFO | train | epoch 001 | loss 9 | ppl 512 | wpb 1000 | num_updates 50 | lr 0.1
| epoch 002 | valid on 'valid' subset | loss 6 | nll_loss 5.8 | ppl 55.72 | num_updates 100 | best_loss 5
"""
FAIRSEQ_JSON = """{"epoch": 1, "update": 0.5, "loss": "7.4", "ppl": "168.9", "wpb": "9", "num_updates": "50"}
INFO | valid | {"epoch": 1, "valid_loss": "7.2", "valid_ppl": "147.03", "valid_num_updates": "50"}
INFO | train | {"epoch": 1, "train_loss": "9", "train_ppl": "512", "train_num_updates": "100"}
INFO | valid | {"valid_best_loss": "5", "valid_loss": "5.8", "valid_ppl": "55.72", "valid_num_updates": "100"}
"""
BUILD_NANOGPT = "0 val 10.9000\n0 hella 0.2500\n0 train 10.950000\n250 val 5.9000\n250 train 5.950000\n"
MODDED = """import torch
        val_loss = 0.0
        print0(f"step:{step}/{args.num_iterations} val_loss:{val_loss:.4f} train_time:{ms:.0f}ms")
step:0/100 val_loss:10.8000 train_time:0ms step_avg:nanms
step:1/100 train_loss:10.7000 train_time:20ms step_avg:nanms
step:50/100 val_loss:5.0000 train_time:900ms step_avg:22.10ms
step:75/100 train_time:1200ms step_avg:18.34ms
step:100/100 val_loss:4.0000 train_time:1800ms step_avg:20.10ms
"""
GOLF = """    train_batch_tokens: 8 * 500,
    print(f"model_params:{8 * width ** 2}")
model_params:3000000
train_batch_tokens:2000 iterations:100 warmup_steps:20
""" + MODDED.replace("val_loss:5.0000", "val_loss:5.0000 val_bpb:2.9000")
PLAIN = """Model Parameters: 2.50M
step 0: train 4.9000, val 5.0000
step 0 | loss 4.9500
step 100: train 2.9000, val 3.0000
step 100 | loss 2.8000
"""
NANOCHAT = """Parameter counts:
wte                     : 1,000,000
lm_head                 : 1,000,000
transformer_matrices    : 2,500,000
total                   : 4,500,000
Total batch size 4,096 => gradient accumulation steps: 1
Step 00000 | Validation bpb: 3.210000
step 00000/00200 (0.00%) | loss: 11.090000 | lrm: 1.00 | dt: 90.00ms | tok/sec: 1,000 | epoch: 1
step 00100/00200 (50.00%) | loss: 5.090000 | lrm: 1.00 | dt: 90.00ms | tok/sec: 1,000 | epoch: 1
Step 00100 | Validation bpb: 1.510000
Step 00200 | Validation bpb: 1.310000
<|bos|>The loss of France is 3.
Minimum validation bpb: 1.310000
"""
TRAINER = {"global_step": 200, "max_steps": 200, "total_flos": 6 * 1e6 * 200_000, "log_history": [
    {"loss": 4.0, "epoch": 0.5, "step": 100}, {"eval_loss": 3.9, "eval_runtime": 1.0, "step": 100},
    {"loss": 3.5, "epoch": 1.0, "step": 200}, {"eval_loss": 3.4, "eval_runtime": 1.0, "step": 200},
    {"train_loss": 3.75, "train_runtime": 9.0, "step": 200}]}
LIGHTNING = """epoch,step,train_loss_epoch,train_loss_step,val_loss
0,49,,4.5,
0,99,,4.1,
0,99,,,4.2
0,99,4.3,,
1,199,,3.1,
1,199,,,3.3
,,,,
"""
LITGPT = """epoch,iter,learning_rate,loss,step,tokens,total_tokens,val_loss,val_ppl
0,100,0.0001,4.5,99,51200,102400,,
0,200,0.0001,4.0,199,102400,204800,,
,,,,199,,,4.1,60.3
0,300,0.0001,3.5,299,153600,307200,,
"""
KEYS = [f"{run} - {key}" for run in ("small", "big") for key in ("_step", "val/loss")]      # by epochs
CHART = "epoch," + ",".join(f'"{key}","{key}__MIN","{key}__MAX"' for key in KEYS) + """
"1","100","100","100","3.5","3.5","3.5","","","","","",""
"2","200","200","200","3.25","3.25","3.25","200","200","200","3","3","3"
"""
RUNS_TABLE = """"Name","State","Created","Runtime","lr","n_params","tokens","train/loss","val/loss"
"a","finished","2025-01-02T03:04:05.000Z","100","0.001","1000000","20000000","3.5","3.6"
"b","crashed","2025-01-02T03:05:05.000Z","200","0.002","2000000","40000000","3.2","3.3"
"""
SEEDS = RUNS_TABLE.replace('"tokens"', '"iter"').replace('"b"', '"a"').replace("40000000", "20000000")
HISTORY = [{"_step": 0, "system": 1}, {"_step": 1, "iter": 0, "train/loss": 5.0, "val/loss": 5.1},
           {"_step": 2, "iter": 1, "train/loss": 4.9}, {"_step": 3, "iter": 1, "train/loss": 4.8},
           {"_step": 4, "iter": 100, "train/loss": 4.0, "val/loss": 4.1, "pad": "x" * 40_000}]
RUN_LIST = [{"name": "a", "config": {"params": 1e6}, "summary": {"tokens": 2e7, "loss": 3.5}},
            {"name": "b", "config": {"params": 2e6}, "summary": {"tokens": 4e7, "loss": 3.25}}]
BY_NAME = {"notes": {"by": "hand"}, "a": {"total_params": 1e6, "train_tokens": 2e7, "final_val_loss": 3.5},
           "b": {"total_params": 2e6, "train_tokens": 4e7, "final_val_loss": 3.25}}
# Finished runs without a name, by their last step: of two sizes, and of two rates or seeds at one.
UNNAMED = """lr,seed,global_step,parameter_count,tokens,val_loss
1e-3,1,1000,1e6,2e7,3.5
3e-3,1,1000,1e6,2e7,3.25
3e-3,2,1000,1e6,2e7,3.2
3e-3,2,1000,2e6,2e7,3.0
"""
SWEEP = [{"config": {"name": "mlp", "lr": lr}, "step": 100, "val_loss": loss} for lr, loss in
         ((1e-3, 3.5), (3e-3, 3.25))]
CURVE_LIST = {"runs": [
    {"run": "a", "params": 1e6, "train_loss": [[10, 3.6], [20, 3.4]], "eval_loss": [[20, 3.5]]},
    {"run": "b", "params": 2e6, "train_loss": [[10, 3.5], [20, 3.2]], "eval_loss": [[20, 3.3]]}]}
GERMAN = """# Läufe vom Dienstag
sep=;
Name;params;tokens;loss ;;
a;1e6;2e7;3,5;;
b;2e6;4e7;3,25;;

"""
BATCH = "--batch_tokens=1000"
SIZE = "--params=1e6"
AB = [("a", 1e6, 2e7, 3.5), ("b", 2e6, 4e7, 3.25)]
LOW = ["--params=1e6", "--batch_tokens=1000"]
TWO = [("", 1e6, 5e4, 5.0), ("", 1e6, 1e5, 4.0)]
IN_BITS = [("", 1e6, 5e4, 7.2), ("", 1e6, 1e5, 5.8)]
ONE = [("", 1e5, 1e5, 2.2), ("", 1e5, 2e5, 2.0)]

SAMPLES = {
    "nanogpt.log": (NANOGPT, [], ONE),
    "nanogpt.log.gz": (gzip.compress(NANOGPT.encode(), mtime=0), [], ONE),
    "resumed.txt": (RESUMED, [], [("", 1e5, 1e5, 2.25), ("", 1e5, 2e5, 2.01), ("", 1e5, 3e5, 1.91)]),
    "second.out": (SECOND, [], [*ONE, (":2", 3e5, 2e5, 1.95)]),
    "powershell.log": (NANOGPT.replace("\n", "\r\n").encode("utf-16"), [], ONE),
    "config.log": ('{\n "step": 3\n}\n' + NANOGPT, [], ONE),
    "fork.log": (FORK, LOW, [("", 1e6, 1e5, 2.6), ("", 1e6, 2e5, 2.45)]),
    "main.log": (LLMC, LOW, [("", 1e6, 5e4, 6.5), ("", 1e6, 1e5, 5.5)]),
    "llmc_console.log": (LLMC_CONSOLE, [BATCH], [("", 2e6, 5e4, 6.5), ("", 2e6, 1e5, 5.5)]),
    "megatron.log": (MEGATRON, LOW, [("", 1e6, 5e4, 5.0), ("", 1e6, 1e5, 4.0)]),
    "megatron_new.log": (MEGATRON_NEW, [], TWO),
    "torchtitan.log": (TORCHTITAN, [BATCH], TWO),
    "olmo.log": (OLMO, [SIZE], TWO),
    "composer.log": (COMPOSER, [SIZE], TWO),
    "keras.log": (KERAS, LOW, TWO),
    "fairseq.log": (FAIRSEQ, [BATCH], IN_BITS),
    "fairseq.json": (FAIRSEQ_JSON, LOW, IN_BITS),
    "log.txt": (BUILD_NANOGPT, LOW, [("", 1e6, 2.5e5, 5.9)]),
    "modded.txt": (MODDED, LOW, [("", 1e6, 5e4, 5.0), ("", 1e6, 1e5, 4.0)]),
    "golf.log": (GOLF, [], [("", 3e6, 1e5, 5.0), ("", 3e6, 2e5, 4.0)]),
    "plain.txt": (PLAIN, [BATCH], [("", 2.5e6, 1e5, 3.0)]),
    "nanochat.log": (NANOCHAT, [], [("", 3.5e6, 409_600, 1.51), ("", 3.5e6, 819_200, 1.31)]),
    "trainer_state.json": (json.dumps(TRAINER), [BATCH], [("", 1e6, 1e5, 3.9), ("", 1e6, 2e5, 3.4)]),
    "metrics.csv": (LIGHTNING, LOW, [("", 1e6, 9.9e4, 4.2), ("", 1e6, 1.99e5, 3.3)]),
    "litgpt.csv": (LITGPT, [SIZE], [("", 1e6, 204_800, 4.1)]),
    "chart.csv": (CHART, LOW, [("small", 1e6, 1e5, 3.5), ("small", 1e6, 2e5, 3.25), ("big", 1e6, 2e5, 3.0)]),
    "runs_table.csv": (RUNS_TABLE, [], [("a", 1e6, 2e7, 3.6), ("b", 2e6, 4e7, 3.3)]),
    "seeds.csv": (SEEDS, [BATCH], [("a", 1e6, 2e10, 3.6), ("a:2", 2e6, 2e10, 3.3)]),
    "run.wandb": (wandb_file("big", {"n_params": 5e6, "lr": 1e-3}, HISTORY), [BATCH],
                  [("big", 5e6, 1e5, 4.1)]),
    "events.out.tfevents.1.host": (event_file(
        (0, "loss/train", 5), (0, "loss/val/t", 5.25), (100, "loss/train", 4), (100, "loss/val/t", 4.25),
        (100, "lr", 1e-3)), LOW, [("", 1e6, 1e5, 4.25)]),
    "project.db": (trackio_file(
        ("a", {"n_params": 1e6, "lr": 0.1}, [(50, {"loss": 4.5}), (100, {"loss": 4, "val/loss": 4.1})]),
        ("b", {"n_params": 2e6, "lr": 0.1}, [(50, {"loss": "NaN"}), (100, {"loss": 3, "val/loss": 3.1})])),
        [BATCH], [("a", 1e6, 1e5, 4.1), ("b", 2e6, 1e5, 3.1)]),
    "list.json": (json.dumps(RUN_LIST), [], AB),
    "by_name.json": (json.dumps(BY_NAME), [], AB),
    "unnamed.csv": (UNNAMED, [], [("", 1e6, 2e7, 3.5), (":2", 1e6, 2e7, 3.25), (":3", 1e6, 2e7, 3.2),
                                  (":4", 2e6, 2e7, 3.0)]),
    "restart.csv": ("iter,N,D,val_loss\n20,1e6,1e5,4\n40,1e6,2e5,3.5\n61,1e6,3e5,3.2\n"
                    "15,1e6,7e4,5\n30,1e6,1.5e5,4.5\n", [],
                    [("", 1e6, 1e5, 4), ("", 1e6, 2e5, 3.5), ("", 1e6, 3e5, 3.2), (":2", 1e6, 7e4, 5),
                     (":2", 1e6, 1.5e5, 4.5)]),
    "sweep.json": (json.dumps(SWEEP), LOW, [("mlp", 1e6, 1e5, 3.5), ("mlp:2", 1e6, 1e5, 3.25)]),
    "curves.json": (json.dumps(CURVE_LIST), [BATCH], [("a", 1e6, 2e4, 3.5), ("b", 2e6, 2e4, 3.3)]),
    "lines.jsonl": ("".join(json.dumps({"step": s, "tokens": 1000 * s, "val_loss": 3 - s / 100}) + "\n"
                            for s in (50, 100)), [SIZE], [("", 1e6, 5e4, 2.5), ("", 1e6, 1e5, 2.0)]),
    "german.csv": (GERMAN, [], AB),
    "tabs.tsv": (GERMAN.replace(";", "\t").replace("sep=\t\n", ""), [], AB)}
SAMPLES = {name: (data.encode() if isinstance(data, str) else data, flags, points)
           for name, (data, flags, points) in SAMPLES.items()}
