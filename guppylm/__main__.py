"""The command line: `python -m guppylm data | train | chat | evaluate | export | web`. One function per sub-command.

What a sub-command needs is imported inside it, so that `chat` starts fast and needs torch and tokenizers alone.
"""

import argparse
import itertools
import json
import math
import os
import shlex
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

KNOWN_AFTER = 10  # steps: then it is said how long the rest will take


class Parser(argparse.ArgumentParser):
    """argparse, with mistakes in one line."""

    def error(self, message: str):
        self.exit(2, f"guppylm: {message} (see: {self.prog} --help)\n")


def data(args: argparse.Namespace) -> None:
    """Write train.jsonl and eval.jsonl and print a card of what is in them; or print --sample conversations."""
    from guppylm import card, corpus

    persona = persona_of(args)
    if args.topic is not None and not args.sample:
        raise ValueError("--topic goes with --sample N")
    if args.json and args.sample:
        raise ValueError("--json prints counts, --sample conversations: choose one")
    if args.topic is not None and args.topic not in persona.topics:
        raise ValueError(f"--topic {args.topic}: {persona.name} knows {', '.join(persona.topics)}")
    if args.sample:
        for c in samples(persona, args.topic, args.sample, args.seed):
            print(f"[{c.exchange.place}] {', '.join(c.entries)}\n  you> {c.message}\n  {persona.name}> {c.reply}")
        return
    # First, because it refuses what can't be trained on.
    prepared = corpus.prepare(persona, args.rows, args.eval_rows, args.seed)
    train, held = rows_of(persona, args)
    corpus.write_rows(args.out, train, held)
    counted = card.data_card(persona, train, held, prepared)
    advice = card.advice(persona, counted)
    if args.json:
        print(json.dumps({**asdict(counted), "advice": advice}, indent=2))
        return
    print(f"{args.out / 'train.jsonl'} and eval.jsonl: {persona.name}, {len(persona.topics)} topics")
    print(card.describe(counted))
    for line in advice:
        print(f"{persona.file}: {line}")


def persona_of(args: argparse.Namespace):
    """The persona that the options ask for."""
    from guppylm import datagen

    return datagen.load_persona(args.persona or "guppy")


def samples(persona, topic: str | None, n: int, seed: int):
    """n conversations to read, of one topic or of any."""
    from guppylm import datagen

    return itertools.islice((c for c in datagen.endless(persona, seed) if topic in (None, c.topic)), n)


def rows_of(persona, args: argparse.Namespace):
    """The persona's rows to train on, and those to evaluate with, that the options ask for."""
    from guppylm import datagen

    made = datagen.generate(persona, args.rows + args.eval_rows, args.seed)
    return datagen.split(made, args.eval_rows)


def train(args: argparse.Namespace) -> None:
    """Train a model and keep it in a folder, with its history and all that resuming needs."""
    import torch

    from guppylm import chat, corpus, datagen, measure, parallel, runs
    from guppylm import train as training
    from guppylm.device import pick_device, pick_precision
    from guppylm.model import GuppyLM, ModelConfig
    from guppylm.tokenizer import Tokenizer

    if args.minutes and args.eval_every:
        raise ValueError("--minutes evaluates ten times, however many steps fit: leave out --eval-every")
    if args.data and args.persona:
        raise ValueError("--data brings its own conversations: leave out --persona")
    source = None if args.data else persona_of(args)
    persona = datagen.about(source) if source else {"name": args.data.resolve().name, "summary": ""}
    out = args.out or Path("checkpoints") / persona["name"]
    config, device = settings(args, out), pick_device(args.device)
    tok = Tokenizer.load(args.tokenizer) if args.tokenizer else None
    if source:
        prepared = corpus.prepare(source, args.rows, args.eval_rows, config.seed, tok)
    else:
        prepared = corpus.read(args.data, tok)
    device = parallel.join(device)
    if (rows := min(config.batch_size, len(prepared.train))) < parallel.size():
        raise ValueError(f"--nproc-per-node {parallel.size()}: a step has fewer rows ({rows})")
    precision = parallel.agreed(runs.saved_precision(out, device) if args.resume else pick_precision(device))

    def begin() -> training.State:
        torch.manual_seed(config.seed)
        return training.start(GuppyLM(ModelConfig(vocab_size=prepared.tok.vocab_size)).to(device), config, precision)

    if args.profile:
        state = begin()
        report = measure.profile(state, prepared, config)
        if parallel.rank() == 0:
            print(report)
        parallel.leave(state)
        return
    if args.minutes and not args.resume:
        config = runs.fit(config, 60 * args.minutes, *measure.seconds(begin(), prepared, config))
    state = begin()
    if args.resume:
        runs.resume(out, state, prepared)
    together = ["torchrun", "--nproc-per-node", str(parallel.size()), "-m"] if parallel.size() > 1 else []
    command = shlex.join([*together, "guppylm", *sys.argv[1:]])
    drawn = {"rows": len(prepared.train)} if args.data else {"rows": args.rows, "eval_rows": args.eval_rows}
    record = {"persona": persona, "training": {"command": command, **drawn}}
    if parallel.rank() == 0:
        if args.resume and args.minutes:
            print(f"{out}: goes on in its own settings; --minutes counts for new runs alone")
        introduce(state, prepared, config)
        runs.save_state(out, state, prepared, config)  # a folder that can't be written to is known before all work
    learn_to_copy(state, prepared, config)
    events = training.train(state, prepared, config)
    if parallel.rank() == 0:
        bot = chat.Bot(state.model, prepared.tok, persona["name"])
        show(events, state, prepared, config, bot, out, record)
    else:
        follow(events, state, config)
    parallel.leave(state)


def settings(args: argparse.Namespace, out: Path):
    """The TrainConfig that the options ask for; with --resume, that of the run in `out`."""
    from guppylm import runs
    from guppylm.train import TrainConfig

    given = {name: getattr(args, name, None) for name in TrainConfig.__annotations__}
    given = {name: value for name, value in given.items() if value is not None}
    if args.resume:
        return runs.saved_config(out, given)
    if not args.profile and ((out / "state.pt").exists() or (out / "model.pt").exists()):
        raise ValueError(f"{out}: there is a model already: add --resume to go on, or choose another --out")
    return runs.suited(TrainConfig(**given))


def stop_together(interrupted: list[int], state) -> bool:
    """Whether Ctrl-C has reached any of the processes that train together: none may wait for one that has gone."""
    from guppylm import parallel

    return parallel.total(len(interrupted), state.device) > 0


def stop(message: str, state) -> None:
    """End at Ctrl-C, in all processes; the first one says what was kept."""
    from guppylm import parallel

    if parallel.rank() == 0:
        print(message)
    parallel.leave(state)
    sys.exit(130)


def introduce(state, prepared, config) -> None:
    """Say what is about to be trained, and where it starts from."""
    vocabulary = prepared.tok.vocab_size
    print(f"{state.model.n_parameters():,} parameters, {len(prepared.train):,} rows, {config.steps:,} steps, "
          f"on {state.device} in {str(state.precision).removeprefix('torch.')}")  # fmt: skip
    print(f"an untrained model's loss is ln {vocabulary:,} = {math.log(vocabulary):.2f}, as unsure as choosing among "
          f"{vocabulary:,} tokens", flush=True)  # fmt: skip


def learn_to_copy(state, prepared, config) -> None:
    """The lesson before the first conversation. A run that is stopped in it begins it anew."""
    from tqdm import tqdm

    from guppylm import copying, parallel, runs
    from guppylm.train import unsure

    state.clock.lap("printing and saving")
    hidden = parallel.rank() > 0 or not sys.stderr.isatty()
    losses = tqdm(copying.lesson(state, prepared.tok, config), total=config.copy_steps, disable=hidden, leave=False)
    with runs.interrupts() as interrupted:
        for step, loss in enumerate(losses, start=1):
            stopped = stop_together(interrupted, state)
            if parallel.rank() == 0 and (stopped or step % 50 == 0):
                losses.clear()  # the bar: this line would be written behind it
                done = f"copying random tokens, step {step}/{config.copy_steps}"
                print(f"{done}: loss {loss:.3f}, {unsure(loss)}", flush=True)
            if stopped:
                stop("stopped in the lesson: the same command with --resume begins it anew", state)


def show(events, state, prepared, config, bot, out: Path, record: dict) -> None:
    """Print what happens while training, save it after each evaluation and every minute, and at Ctrl-C."""
    from guppylm import runs

    saved = time.monotonic()
    with runs.interrupts() as interrupted:
        shown = show_progress(events, state.step, config.steps)
        for progress in shown:
            stopped = stop_together(interrupted, state)
            if progress.steps_run == KNOWN_AFTER:
                print(f"about {runs.minutes_left(progress, config):.0f} min to go", flush=True)
            if progress.evaluation:
                print(runs.describe(progress, config))
                state.model.eval()  # without dropout, where a config has some
                reply = bot.reply(prepared.message, seed=config.seed)
                state.model.train()
                print(f"  you> {prepared.message}\n  {bot.name}> {reply}", flush=True)
                runs.save(out, state, prepared, config, record)
                saved = time.monotonic()
            elif stopped or time.monotonic() - saved > 60:
                runs.save_state(out, state, prepared, config)
                saved = time.monotonic()
            if stopped and state.step < config.steps:
                shown.close()  # and with it the bar
                kept = f"stopped after step {state.step} and saved in {out}"
                stop(f"{kept}: the same command with --resume goes on", state)
    if state.clock.seconds.keys() - {"printing and saving"}:  # or a run that had been finished was resumed
        print(runs.describe_time(state.clock.seconds))
    folder = f'"{out}"' if " " in str(out) else out
    print(f"saved in {out}: python -m guppylm chat --model {folder}")


def follow(events, state, config) -> None:
    """Train along, in a process that neither prints nor saves."""
    from guppylm import runs

    with runs.interrupts() as interrupted:
        for _ in events:
            if stop_together(interrupted, state) and state.step < config.steps:
                stop("", state)


def show_progress(events, done: int, steps: int):
    """Pass events on; on a terminal, with a tqdm bar beside them."""
    from tqdm import tqdm

    with tqdm(total=steps, initial=done, disable=not sys.stderr.isatty(), unit="step", leave=False) as bar:
        for progress in events:
            bar.update(progress.step - bar.n)
            bar.set_postfix(loss=f"{progress.loss:.3f}", refresh=False)
            if progress.evaluation or progress.steps_run == KNOWN_AFTER:
                bar.clear()  # something will be printed
            yield progress


def chat(args: argparse.Namespace) -> None:
    """Answer one --prompt, or every line that is typed until the input ends."""
    from guppylm import chat as chatting

    bot = chatting.load(args.model, args.device)
    sampling = {"temperature": args.temperature, "top_k": args.top_k, "seed": args.seed}
    say = explain if args.explain else speak
    if args.prompt is not None:
        say(bot, args.prompt, sampling)
        return
    interactive = sys.stdin.isatty()
    if interactive:
        print(f"{bot.name} is listening. Type a message and press Enter; Ctrl-C ends it.")
    while True:
        try:
            message = input("You> " if interactive else "")
        except EOFError:
            return
        if message.strip():
            print(f"{bot.name.capitalize()}> ", end="")
            say(bot, message, sampling)


def speak(bot, message: str, sampling: dict) -> None:
    """Print the reply as it is made."""
    for step in bot.stream(message, **sampling):
        print(printable(step.text), end="", flush=True)
    print()


def explain(bot, message: str, sampling: dict) -> None:
    """Print the message as the model reads it, and each token with its probability and what else it might have been."""
    print(f"read as {printable(bot.tok.mend(message))!r}")
    print(f"{'token':<16}{'chance':>7}   also likely")
    for step in bot.stream(message, **sampling):
        others = "   ".join(f"{printable(label)!r} {p:.1%}" for label, p in step.choices if label != bot.label(step.id))
        print(f"{printable(bot.label(step.id))!r:<16}{step.probability:>7.1%}   {others}")


def printable(text: str) -> str:
    """Without characters that would move the cursor or change the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def evaluate(args: argparse.Namespace) -> None:
    """Measure how good a model is: loss against the floor, replies on topic, and more."""
    from guppylm import chat as chatting
    from guppylm import checkpoint, datagen
    from guppylm import evaluate as evaluation

    model, tok, record, folder = load_model(args, args.device)
    own = record.get("persona", {}).get("name", "guppy").replace(" ", "_")
    persona = datagen.load_persona(args.persona or own)
    bot, training = chatting.Bot(model, tok, persona.name), record.get("training", {})

    def say(what: str) -> None:
        print(f"measuring: {what} ...", file=sys.stderr, flush=True)  # not where --json goes

    card = evaluation.evaluate(bot, persona, training, args.prompts, args.temperature, args.top_k, say)
    text = json.dumps(card, indent=2)
    if args.save:
        checkpoint.write_text(folder / "evaluation.json", text + "\n")
    print(text if args.json else evaluation.describe(card))


def export(args: argparse.Namespace) -> None:
    """Write a model, or the rows of a persona, for other software."""
    from guppylm import export as exporting

    out: Path = args.out
    if args.push and args.to not in ("hf", "dataset"):
        raise ValueError(f"--push uploads what --to hf and --to dataset write, not {args.to}")
    if args.fp32 and args.to != "onnx":
        raise ValueError(f"--fp32 is for --to onnx, not {args.to}")
    if args.persona and args.to != "dataset":
        raise ValueError(f"--persona is for --to dataset; --to {args.to} takes a trained model: --model DIR")
    if args.to == "dataset":
        persona = persona_of(args)
        exporting.save_dataset(persona, *rows_of(persona, args), out)
    else:
        model, tok, record, folder = load_model(args)
        if args.to == "hf":
            file = folder / "evaluation.json"
            evaluation = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
            with extra("export"):
                exporting.save_hf(model, tok, record, evaluation, out)
        elif args.to == "onnx":
            with extra("export"):
                from guppylm import onnx_export

                out = out if out.suffix == ".onnx" else out / "model.onnx"
                onnx_export.save_onnx(model, out, eight_bit=not args.fp32)
        else:
            with extra("export"):
                from guppylm import site

                print(site.build(model, tok, record, out))
    print(f"written: {out}")
    if args.push:
        with extra("export"):
            address = exporting.push(out, args.push, "dataset" if args.to == "dataset" else "model")
        print(f"uploaded: {address}")


def web(args: argparse.Namespace) -> None:
    """Build the browser page of a model and serve it to this machine."""
    model, tok, record, _ = load_model(args)
    with extra("export"):
        from guppylm import site
    server = site.server(args.out, args.port)  # first, because a port that is taken is known at once
    print(f"building {args.out} ...", flush=True)
    print(site.build(model, tok, record, args.out))
    print(f"open http://127.0.0.1:{server.server_address[1]}/ ; Ctrl-C ends it", flush=True)
    server.serve_forever()


def load_model(args: argparse.Namespace, device: str = "cpu"):
    """The model, tokenizer and record that --model names, and the folder they come from."""
    from guppylm import chat as chatting
    from guppylm import checkpoint
    from guppylm.device import pick_device

    folder = chatting.find_model(args.model)
    return *checkpoint.load(folder, pick_device(device)), folder


@contextmanager
def extra(name: str):
    """Say which packages to install where an import inside fails."""
    try:
        yield
    except ImportError as error:
        raise ValueError(f'{error.name} is missing: in the checkout, pip install ".[{name}]"') from error


def parser() -> argparse.ArgumentParser:
    """All sub-commands and their options."""
    top = Parser(prog="guppylm", description="A small fish of a language model, built from scratch.")
    names = "data | train | chat | evaluate | export | web"
    commands = top.add_subparsers(required=True, metavar=names, parser_class=Parser)

    def command(function, **options) -> argparse.ArgumentParser:
        sub = commands.add_parser(function.__name__, help=function.__doc__, description=function.__doc__)
        sub.set_defaults(run=function, **options)
        return sub

    def add_rows(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--persona", metavar="NAME|FILE.toml", help="whose data (default: guppy)")
        sub.add_argument("-n", "--rows", type=count, default=60_000, help="conversations to train on (default: 60,000)")
        sub.add_argument("--eval-rows", type=count, default=1_000, help="conversations kept apart (default: 1,000)")

    def add_seed(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--seed", type=seed, default=0, help="the same seed gives the same rows (default: 0)")

    def add_model(sub: argparse.ArgumentParser) -> None:
        where = "a trained model (default: checkpoints/guppy, else the shipped fish)"
        sub.add_argument("--model", metavar="DIR", help=where)

    def add_device(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")

    def add_sampling(sub: argparse.ArgumentParser) -> None:
        add_device(sub)
        wildness = "0: always the likeliest token; 1: as trained (default: 0.7)"
        sub.add_argument("--temperature", type=temperature, default=0.7, help=wildness)
        top = "choose among so many tokens, 0: all (default: 50)"
        sub.add_argument("--top-k", type=count_or_zero, default=50, help=top)

    sub = command(data)
    add_rows(sub)
    add_seed(sub)
    sub.add_argument("--out", type=Path, default=Path("data"), metavar="DIR", help="where to write (default: data)")
    sub.add_argument("--json", action="store_true", help="print all counts, those of each topic too, for programs")
    sub.add_argument("--sample", type=count, metavar="N", help="write nothing, print N conversations to read")
    sub.add_argument("--topic", metavar="NAME", help="with --sample: of this topic alone")

    sub = command(train)
    add_rows(sub)
    rows = "train on DIR/train.jsonl and DIR/eval.jsonl instead of a persona"
    sub.add_argument("--data", type=Path, metavar="DIR", help=rows)
    sub.add_argument("--tokenizer", type=Path, metavar="FILE", help="keep the vocabulary of this tokenizer.json")
    sub.add_argument("--out", type=Path, metavar="DIR", help="where to keep the model (default: checkpoints/NAME)")
    sub.add_argument("--resume", action="store_true", help="go on with the run in --out, in its settings")
    sub.add_argument("--profile", action="store_true", help="train nothing: time some steps, and say where it goes")
    length = sub.add_mutually_exclusive_group()
    length.add_argument("--steps", type=count, help="optimizer steps")
    length.add_argument("--minutes", type=positive_number, help="as many steps as fit into so many minutes here")
    sub.add_argument("--batch-size", type=count, help="rows of a step")
    sub.add_argument("--micro-batch", type=count, help="rows computed at once: less memory, the same gradients")
    sub.add_argument("--learning-rate", type=positive_number, help="the highest of the schedule")
    sub.add_argument("--eval-every", type=count, help="steps between evaluations")
    sub.add_argument("--seed", type=seed, help="of the rows, the first weights and the order")
    add_device(sub)

    sub = command(chat)
    add_model(sub)
    add_sampling(sub)
    sub.add_argument("--prompt", metavar="TEXT", help="answer this one message")
    sub.add_argument("--seed", type=seed, help="the same seed gives the same reply")
    sub.add_argument("--explain", action="store_true", help="print each token, its probability and the runners-up")

    sub = command(evaluate)
    add_model(sub)
    add_sampling(sub)
    judge = "whose templates judge (default: those of the model's own name)"
    sub.add_argument("--persona", metavar="NAME|FILE.toml", help=judge)
    sub.add_argument("--prompts", type=Path, metavar="FILE.jsonl", help="also these messages, with their topics")
    sub.add_argument("--json", action="store_true", help="print everything, for programs")
    sub.add_argument("--save", action="store_true", help="keep it beside the model, where export finds it")

    sub = command(export)
    what = "hf: a GPT-2 for transformers; onnx: one file; site: the browser page; dataset: the rows of --persona"
    sub.add_argument("--to", required=True, choices=("hf", "onnx", "site", "dataset"), help=what)
    sub.add_argument("out", type=Path, metavar="OUT", help="folder to write, or for onnx a file")
    add_model(sub)
    add_rows(sub)
    add_seed(sub)
    sub.add_argument("--fp32", action="store_true", help="onnx: 32 bits a weight instead of 8")
    upload = "upload to the Hugging Face hub as NAME, with the token in HF_TOKEN"
    sub.add_argument("--push", metavar="NAME", help=upload)

    sub = command(web)
    add_model(sub)
    sub.add_argument("--out", type=Path, default=Path("site"), metavar="DIR", help="where to build (default: site)")
    port = "to serve it on, 0: any that is free (default: 8000)"
    sub.add_argument("--port", type=count_or_zero, default=8000, help=port)
    return top


def count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return value


def count_or_zero(text: str) -> int:
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def seed(text: str) -> int:
    if not -(2**63) <= (value := int(text)) < 2**63:
        raise argparse.ArgumentTypeError(f"{text} does not fit into 64 bits")
    return value


def positive_number(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def temperature(text: str) -> float:
    value = float(text)
    if value and not 0.01 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text} is neither 0 nor a number from 0.01 to 100")
    return value


def main() -> None:
    """Run a sub-command. A user's mistake is one line on standard error and exit status 2."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a console that lacks a character shows another, and nothing stops
    args = parser().parse_args()
    try:
        args.run(args)
        sys.stdout.flush()  # here, where a reader that is gone can be dealt with
    except KeyboardInterrupt:
        print()
        sys.exit(130)
    except BrokenPipeError:  # the reader, say `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit fails once more
        sys.exit(141)  # 128 + SIGPIPE, as a shell has it
    except (ValueError, OSError) as error:
        print(f"guppylm: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        signs = ("out of memory", "DefaultCPUAllocator")  # of a GPU, of a CPU
        if not any(sign in str(error) for sign in signs):
            raise
        advice = "try --device cpu, or close other programs" if hasattr(args, "device") else "close other programs"
        if args.run is train:
            advice = "try a smaller --micro-batch (with --resume if the run had begun), or --device cpu"
        print(f"guppylm: out of memory: {advice}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
