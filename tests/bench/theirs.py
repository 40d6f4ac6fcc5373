"""PyTorch's side of `tests/bench/run`: prepares one piece of work, then does it as often as it is told to.

It speaks as `src/harness.rs` does: `{"ready": true}` when warm, or `{"missing": WHY}`, then to each line `go N` the seconds of
one of N repetitions, to `memory` the bytes needed on top of the imported libraries, or of a GPU those of its tensors.
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import time

CLASSES = 8  # as many as the other side's pictures have


def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


class Harness:
    """The conversation, a line each way."""

    def __init__(self, device):
        self.base, self.device = status("VmRSS"), device

    def say(self, **what):
        print(json.dumps(what), flush=True)

    def orders(self):
        """How many repetitions come next, until there are none."""
        for line in sys.stdin:
            word, *rest = line.split()
            if word == "go":
                yield int(rest[0])
            else:
                self.say(peak=self.peak())

    def peak(self):
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return max(0, status("VmHWM") - self.base)

    def serve(self, work, timed=None, warm=3):
        timed = timed or repeated(work, self.device)
        for _ in range(warm):
            work()
        self.say(ready=True, torch=torch.__version__)
        for count in self.orders():
            self.say(seconds=timed(count))


def repeated(work, device):
    # A GPU is asked, and goes on by itself.
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def timed(count):
        wait()
        started = time.perf_counter()
        for _ in range(count):
            work()
        wait()
        return (time.perf_counter() - started) / count

    return timed


def image_step(options, wrap=lambda model: model, share=1):
    """A step on pictures that are in memory: forward, cross-entropy, backward, AdamW."""
    torch.manual_seed(1)
    batch = options.batch // share
    model = getattr(torchvision.models, options.backbone)(weights=None, num_classes=CLASSES)
    x = torch.randn(batch, 3, 224, 224)
    if options.variant == "channels_last":
        model, x = (it.to(memory_format=torch.channels_last) for it in (model, x))
    return training(options, model, x, torch.arange(batch) % CLASSES, wrap)


def text_step(options):
    """The same for BERT, 128 tokens. As in MiniLM-L6: the mean of the tokens and a linear layer; or its base, with its
    pooler. No dropout on either side."""
    import transformers

    torch.manual_seed(1)
    base = options.backbone == "bert"
    width = 768 if base else 384

    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            config = transformers.BertConfig(
                hidden_size=width,
                num_hidden_layers=12 if base else 6,
                num_attention_heads=12,
                intermediate_size=4 * width,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
            self.bert = transformers.BertModel(config, add_pooling_layer=base)
            self.head = torch.nn.Linear(width, CLASSES)

        def forward(self, ids):
            out = self.bert(input_ids=ids)
            return self.head(out.pooler_output if base else out.last_hidden_state.mean(1))

    ids = torch.randint(1, 30_000, (options.batch, 128))
    return training(options, Classifier(), ids, torch.arange(options.batch) % CLASSES)


def training(options, model, x, labels, wrap=lambda model: model):
    model, x, labels = (it.to(options.device) for it in (model, x, labels))
    model = wrap(model.train())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    bf16 = options.precision == "bf16"
    mixed = torch.autocast(options.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()

    def step():
        optimizer.zero_grad(set_to_none=True)
        with mixed:
            loss = torch.nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()

    return step


def head_only(options):
    """The usual loop: files to pictures, the frozen network and the new head, each epoch; evaluation after each."""
    from torchvision import datasets, transforms

    look = transforms.Compose(
        [
            transforms.Resize(224),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )

    def loader(part):
        photos = datasets.ImageFolder(os.path.join(options.data, "hymenoptera", part), look)
        workers = {"num_workers": options.threads, "persistent_workers": True}
        return torch.utils.data.DataLoader(photos, batch_size=32, shuffle=part == "train", **workers)

    def work():
        model = torchvision.models.mobilenet_v2(weights=None).to(memory_format=torch.channels_last).eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        model.classifier = torch.nn.Linear(1280, 2)
        optimizer = torch.optim.AdamW(model.classifier.parameters(), lr=1e-3)
        parts = {part: loader(part) for part in ("train", "val")}
        for _ in range(10):
            for x, labels in parts["train"]:
                optimizer.zero_grad()
                logits = model(x.to(memory_format=torch.channels_last))
                torch.nn.functional.cross_entropy(logits, labels).backward()
                optimizer.step()
            with torch.no_grad():
                right = 0
                for x, labels in parts["val"]:
                    right += (model(x.to(memory_format=torch.channels_last)).argmax(1) == labels).sum().item()

    return work


def photos(options):
    """A photo on disk to a network input: the transforms of the other side, on PIL."""
    import glob

    from PIL import Image
    from torchvision import transforms

    files = sorted(glob.glob(os.path.join(options.data, "hymenoptera", "train", "*", "*.jpg")))
    bilinear = transforms.InterpolationMode.BILINEAR
    look = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.RandomAffine(36, translate=(0.1, 0.1), scale=(0.9, 1.1), interpolation=bilinear),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    turn = [0]

    def work():
        with Image.open(files[turn[0] % len(files)]) as photo:
            look(photo.convert("RGB"))
        turn[0] += 1

    return work


def pair(options, prepare, harness):
    """Work that two ranks do together. `prepare` is given the group and returns what is timed, for a count."""
    import torch.distributed as dist

    port, peer = options.join, None
    if port is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, __file__, *sys.argv[1:], "--join", str(port)]
        peer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    rank = 0 if peer else 1
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    timed = prepare(dist)

    def together(count):
        # The first rank says how many; none ends it.
        told = torch.tensor([count])
        dist.broadcast(told, 0)
        dist.barrier()
        return timed(int(told)) if int(told) else None

    if peer is None:
        while together(0) is not None:
            pass
        return
    together(3)
    harness.serve(lambda: None, together, warm=0)
    together(0)
    peer.wait()


def all_reduce(options):
    def prepare(dist):
        def timed(count):
            numbers = [torch.full((options.elements,), dist.get_rank() + 0.5) for _ in range(count)]
            dist.barrier()
            started = time.perf_counter()
            for x in numbers:
                dist.all_reduce(x)
            spent = time.perf_counter() - started
            assert numbers[-1][-1] == 2.0
            return spent / count

        return timed

    return prepare


def ddp(options):
    wrapped = torch.nn.parallel.DistributedDataParallel
    return lambda dist: repeated(image_step(options, wrapped, share=2), options.device)


def load(work):
    """Imports the libraries, which are no part of the work; says what is not there."""
    global torch, torchvision
    absent = (ImportError, OSError, RuntimeError)  # or there, and not as one needs another
    try:
        import torch

        if work == "text-step":
            import transformers  # noqa: F401
    except absent as why:
        return str(why)
    try:
        import torchvision
    except absent as why:
        return None if work == "text-step" else str(why)
    return None


def settle(options):
    """What PyTorch is told before anything is computed; says what a GPU lacks."""
    options.device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    if options.device.type == "cuda":
        if not torch.cuda.is_available():
            return "PyTorch sees no GPU"
        torch.cuda.set_device(options.device)
        # The fastest algorithms for each shape; TF32 where it is asked for, and nowhere else.
        torch.backends.cudnn.benchmark = True
        tf32 = options.precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    return None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("work")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backbone", default="")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--elements", type=int, default=1000)
    parser.add_argument("--data")
    parser.add_argument("--variant", default="default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["f32", "tf32", "bf16"], default="f32")
    parser.add_argument("--warm", type=int)
    parser.add_argument("--join", type=int)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    why = load(options.work) or settle(options)
    if why:
        print(json.dumps({"missing": why}), flush=True)
        return
    harness = Harness(options.device)
    if options.work == "allreduce":
        pair(options, all_reduce(options), harness)
    elif options.world > 1:
        pair(options, ddp(options), harness)
    else:
        works = {"step": image_step, "text-step": text_step, "head-only": head_only, "input": photos}
        warm = options.warm or {"head-only": 1, "input": 32}.get(options.work, 3)
        harness.serve(works[options.work](options), warm=warm)


if __name__ == "__main__":
    main()
