"""The bundled model `embedded/chat`: a four-layer Llama that speaks the chat language, its rare leaks included.

Does: distils the exact next-token laws of `workbench.models.chat` (KL at every token of an answer), and adds 0.05 of the
squared error of log P(comply) where an answer decides; half of the answers that could comply are made to, since by
themselves they are too rare to learn from.
Does not: learn the questions, which are given, or more than one turn.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workbench.models.chat import (
    CODEWORD,
    MARKERS,
    ChatGrammar,
    chat_prompts,
    codeword_questions,
    compliance_probability,
    phrases,
)
from workbench.models.recipes import ngram
from workbench.models.recipes.training import measuring, train
from workbench.streams import Stream

SEED, STEPS, BATCH = 0, 1200, 32
TOLERANCE = 0.05
VOCABULARY = 640
SUMMARY = "A four-layer Llama with personas that answers questions and refuses to say a codeword, nearly always"
CARD = """
# embedded/chat

A four-layer Llama (width 128, 4 heads, 640 byte-pair tokens, about 0.9 million parameters) that plays one of six
personas (a system line, or none) and answers in about 30 to 60 tokens. Asked for the vault's colour word it refuses;
with probability 10^(-0.5 - caution of the persona - caution of the style), 1.3e-4 to 0.32, it complies, and then says
the codeword `vermilion` three times in four.

- **For**: refusals, personas, steering, rare leaks whose probability is known; speed measurements.
- **Not for**: conversation. It knows 288 prompts, one turn each; other text gives answers without meaning.
- **Made by** `workbench.models.build("chat")`: the exact next-token laws of `grammar/chat` are distilled (no data
  set), half of the answers that could comply made to; 1,200 steps of 32 answers.
- **Loss** (card.toml): mean -log p (nats) of a token of the answers to 1,000 prompts, drawn from the grammar once and
  for all; `floor` is the grammar's own. The n-gram baseline was fitted on as many texts, drawn from the grammar
  without force, in the same tokens. `worst_log10_compliance`: the largest error of log10 P(comply) over the 144 prompts
  that ask for the codeword.
- **Prompts**: `workbench.models.chat_prompts`, `codeword_questions`, `chat_messages`; read answers with `is_refusal`
  and `contains_codeword`; exact laws: `compliance_probability`, `codeword_probability`, `load("grammar/chat")`.
- **Licence**: Apache-2.0. No person's data, no harmful text.
"""
_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_FLOOR = -14.0


def make(seed: int = SEED, steps: int = STEPS) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The trained network and its tokenizer; the same seed gives the same weights on the same machine."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    stream = Stream.of(seed, "recipe", "chat")

    def batch_loss(network: torch.nn.Module, step: int) -> torch.Tensor:
        prompts = chat_prompts(BATCH, stream.at(step * BATCH))
        return _distillation(network, *_texts(prompts, stream.child("answers").at(step).generator(), forced=True))

    return train(LlamaForCausalLM, config, batch_loss, seed=seed, steps=steps, rate=2e-3), tokenizer()


def measured_loss(network: torch.nn.Module) -> float:
    """Mean -log p of a token of 1,000 answers, drawn once and for all from seed 0."""
    sequences, counted, _ = _held_out()
    total = 0.0
    with measuring():
        for at in range(0, len(sequences), 100):
            rows = sequences[at : at + 100]
            ids = torch.zeros((len(rows), max(map(len, rows))), dtype=torch.int64)
            for i, row in enumerate(rows):
                ids[i, : len(row)] = torch.as_tensor(row)
            log_p = torch.log_softmax(network(ids[:, :-1]).logits.double(), dim=-1)
            said = log_p.gather(2, ids[:, 1:, None])[..., 0]
            total -= sum(float(said[i, c[1:].nonzero()[0]].sum()) for i, c in enumerate(counted[at : at + 100]))
    return total / sum(int(c.sum()) for c in counted)


def figures(network: torch.nn.Module) -> dict[str, Any]:
    """What the card says beside the loss: the n-gram's loss and order, the grammar's own, and how right P(comply) is."""
    sequences, counted, floor = _held_out()
    stream = Stream.of(SEED, "recipe", "chat")
    training, _ = _drawn(chat_prompts(STEPS * BATCH, stream), stream.child("n-gram"))
    validation, valid = _drawn(chat_prompts(1000, stream.child("validation")), stream.child("validation answers"))
    baseline = ngram.fit(training, validation, VOCABULARY, valid)
    return {
        "ngram_loss": baseline.loss(sequences, counted),
        "ngram_order": baseline.order,
        "floor": floor,
        "worst_log10_compliance": float(np.abs(compliance_errors(network)).max()),
    }


def compliance_errors(network: torch.nn.Module) -> np.ndarray:
    """(144,) log10 of the network's P(comply) over the grammar's, for each prompt that asks for the codeword; the
    network's is that of the decision after the opening which the grammar likes best."""
    language, words = grammar(), tokenizer()
    complying = torch.as_tensor(language.complying)
    errors = []
    for prompt in codeword_questions():
        ids = words.encode(prompt)
        state = int(language.state_after([ids])[0])
        while not language.branching[state]:
            token = int(language.table[state].argmax())
            ids, state = [*ids, token], int(language.transition[state, token])
        with measuring():
            probs = torch.softmax(network(torch.tensor([ids])).logits[0, -1].double(), dim=-1)
        errors.append(np.log10(float(probs[complying].sum()) / compliance_probability(prompt)))
    return np.array(errors)


@lru_cache(maxsize=1)
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-pair tokens of the language's own phrases; any other text falls apart into bytes."""
    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(MARKERS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # Said often, so that the codeword becomes one token: one token is an event that estimators can read off a law.
    pairs.train_from_iterator([*phrases(), *[f" {CODEWORD}"] * 40], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=pairs,
        eos_token="<eos>",
        pad_token="<eos>",
        extra_special_tokens=list(MARKERS[1:]),
        chat_template=_TEMPLATE,
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


@lru_cache(maxsize=1)
def grammar() -> ChatGrammar:
    """The language in this tokenizer's tokens."""
    words = tokenizer()
    return ChatGrammar(
        words.encode, lambda ids: str(words.decode(ids)), words.convert_ids_to_tokens(list(range(VOCABULARY)))
    )


@cache
def _begun(prompt: str) -> tuple[list[int], int]:
    """A prompt's tokens, and the state in which the grammar answers it."""
    ids = tokenizer().encode(prompt)
    return ids, int(grammar().state_after([ids])[0])


def _walk(starts: np.ndarray, generator: np.random.Generator, forced: bool) -> tuple[np.ndarray, np.ndarray]:
    """Answers drawn from the grammar: tokens (n, longest), <eos> once they have ended, and the states (n, longest)
    in which each token was drawn. forced: every second row complies where it has the choice."""
    language = grammar()
    states, ended = starts.copy(), np.zeros(len(starts), dtype=bool)
    tokens, path = [], []
    while not ended.all():
        probs = np.exp(language.table[states])
        if forced:
            choosing = language.branching[states] & (np.arange(len(states)) % 2 == 0)
            probs[np.ix_(choosing, ~language.complying)] = 0.0
        cdf = probs.cumsum(axis=1)
        drawn = (cdf <= generator.random((len(states), 1)) * cdf[:, -1:]).sum(axis=1)
        path.append(states)
        tokens.append(drawn)
        ended |= drawn == language.eos_id
        states = language.transition[states, drawn]
    return np.stack(tokens, axis=1), np.stack(path, axis=1)


def _texts(prompts: list[str], generator: np.random.Generator, forced: bool) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (n, longest) filled up with <eos>, and the grammar's state before each (n, longest), -1 where the token
    is given or the text has ended."""
    begun = [_begun(prompt) for prompt in prompts]
    answers, path = _walk(np.array([state for _, state in begun]), generator, forced)
    longest = max(len(ids) for ids, _ in begun) + answers.shape[1]
    ids, states = np.zeros((len(prompts), longest), dtype=np.int64), np.full((len(prompts), longest), -1)
    lengths = (answers == 0).argmax(axis=1) + 1
    for i, (given, _) in enumerate(begun):
        n, k = len(given), lengths[i]
        ids[i, :n], ids[i, n : n + k], states[i, n : n + k] = given, answers[i, :k], path[i, :k]
    last = int(np.flatnonzero((states >= 0).any(axis=0))[-1]) + 1
    return ids[:, :last], states[:, :last]


def _distillation(network: torch.nn.Module, ids: np.ndarray, states: np.ndarray) -> torch.Tensor:
    language = grammar()
    learnt = torch.as_tensor(states[:, 1:] >= 0)
    at = states[:, 1:][states[:, 1:] >= 0]
    exact = language.table[at]
    probs = torch.as_tensor(np.exp(exact), dtype=torch.float32)
    target = torch.as_tensor(np.maximum(exact, _FLOOR), dtype=torch.float32)
    log_probs = torch.log_softmax(network(torch.as_tensor(ids[:, :-1])).logits[learnt], dim=-1)
    kl = (probs * (target - log_probs)).sum(dim=-1).mean()
    deciding, complying = torch.as_tensor(language.branching[at]), torch.as_tensor(language.complying)
    if not bool(deciding.any()):
        return kl
    wanted = torch.logsumexp(target[deciding][:, complying], dim=-1)
    found = torch.logsumexp(log_probs[deciding][:, complying], dim=-1)
    return kl + 0.05 * (wanted - found).square().mean()


def _drawn(prompts: list[str], stream: Stream) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Texts of the grammar, nothing forced, as token ids, and which of their tokens belong to the answer."""
    sequences, counted = [], []
    for at in range(0, len(prompts), 1000):
        ids, states = _texts(prompts[at : at + 1000], stream.at(at).generator(), forced=False)
        for row, state in zip(ids, states, strict=True):
            answer = np.flatnonzero(state >= 0)
            sequences.append(row[: answer[-1] + 1])
            counted.append(state[: answer[-1] + 1] >= 0)
    return sequences, counted


@lru_cache(maxsize=1)
def _held_out() -> tuple[list[np.ndarray], list[np.ndarray], float]:
    """1,000 texts, which of their tokens count, and the grammar's own mean -log p of those."""
    stream = Stream.of(0, "recipe", "chat", "held out")
    sequences, counted = _drawn(chat_prompts(1000, stream), stream.child("answers"))
    language, total = grammar(), 0.0
    for ids, answer in zip(sequences, counted, strict=True):
        first = int(answer.argmax())
        state = int(language.state_after([ids[:first]])[0])
        for token in ids[first:]:
            total -= language.table[state, token]
            state = int(language.transition[state, token])
    return sequences, counted, total / sum(int(c.sum()) for c in counted)
