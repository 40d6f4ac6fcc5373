"""The reference networks for text: encoders of transformers in small shapes, and the classifier of embeddings and LSTMs."""

import torch
from torch import nn

CLASSES = 10
# Small, and no two numbers alike. The project's own names; `positions` is the most tokens of a text.
ENCODER = {"layers": 2, "hidden": 48, "heads": 4, "wide": 80, "words": 211, "positions": 24, "eps": 1e-12}
LENGTHS = [17, 9, 1, 12]


class Text:
    """Tokens behind a text's length are -1 in the batch."""

    def __init__(self, module, dtype):
        self.module = module.to(dtype)

    def parameters(self):
        # What the pooled features do not depend on has no gradient, and the project does not build it.
        named = self.module.named_parameters()
        bare = lambda name: name.removeprefix("encoder.").removeprefix("model.").removeprefix("distilbert.")
        return {bare(name): (p, lambda t: t) for name, p in named}

    def buffers(self):
        return {}

    def forward(self, ids, train):
        self.module.train(train)
        return self.module(ids.clamp(min=0), ids >= 0)


class Encoder(nn.Module):
    """`pool` makes features of rows `[n, t, c]`, the mask and what the encoder's own pooler says."""

    def __init__(self, encoder, pool):
        super().__init__()
        self.encoder, self.pool = encoder, pool
        self.classifier = nn.Linear(ENCODER["hidden"], CLASSES)

    def forward(self, ids, mask):
        out = self.encoder(input_ids=ids, attention_mask=mask.long())
        return self.classifier(self.pool(out, mask))


def mean(out, mask):
    mask = mask[:, :, None].to(out.last_hidden_state.dtype)
    return (out.last_hidden_state * mask).sum(1) / mask.sum(1)


def bert(pool, pooler, act="gelu"):
    def build(dtype, _):
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=ENCODER["words"],
            hidden_size=ENCODER["hidden"],
            num_hidden_layers=ENCODER["layers"],
            num_attention_heads=ENCODER["heads"],
            intermediate_size=ENCODER["wide"],
            max_position_embeddings=ENCODER["positions"],
            layer_norm_eps=ENCODER["eps"],
            hidden_act=act,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="eager",
        )
        return Text(Encoder(BertModel(config, add_pooling_layer=pooler), pool), dtype)

    return build


def distilbert_config():
    from transformers import DistilBertConfig

    return DistilBertConfig(
        vocab_size=ENCODER["words"],
        dim=ENCODER["hidden"],
        n_layers=ENCODER["layers"],
        n_heads=ENCODER["heads"],
        hidden_dim=ENCODER["wide"],
        max_position_embeddings=ENCODER["positions"],
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
        num_labels=CLASSES,
        attn_implementation="eager",
    )


def distilbert(dtype, _):
    from transformers import DistilBertModel

    return Text(Encoder(DistilBertModel(distilbert_config()), lambda out, _: out.last_hidden_state[:, 0]), dtype)


class Classifier(nn.Module):
    """A whole model of transformers, with the head that it brings."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, mask):
        return self.model(input_ids=ids, attention_mask=mask.long()).logits


def distilbert_classifier(dtype, _):
    from transformers import DistilBertForSequenceClassification

    return Text(Classifier(DistilBertForSequenceClassification(distilbert_config())), dtype)


class Lstm(nn.Module):
    """Embeddings, two layers of LSTM, and the state after the last token."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.ModuleDict({"word_embeddings": nn.Embedding(10_000, 100)})
        self.lstm1 = nn.LSTM(100, 128, batch_first=True)
        self.lstm2 = nn.LSTM(128, 64, batch_first=True)
        self.classifier = nn.Linear(64, CLASSES)

    def forward(self, ids, mask):
        rows = self.lstm2(self.lstm1(self.embeddings["word_embeddings"](ids))[0])[0]
        last = mask.sum(1) - 1
        return self.classifier(rows[torch.arange(len(last)), last])


def lstm(dtype, _):
    return Text(Lstm(), dtype)


def net(build, words, encoder=None, backbone=None):
    """As in networks.py; `words` are the tokens that it knows."""
    common = {"backbone": backbone, "padding": "symmetric", "eps": 1e-5, "trajectory": 0, "side": max(LENGTHS)}
    common |= {"gain": 0.0, "shifts": [], "channels_first": False}
    return common | {"build": build, "words": words, "encoder": encoder, "lengths": LENGTHS}


ALL = {
    "bert": net(bert(lambda out, _: out.pooler_output, True), ENCODER["words"], ENCODER),
    "minilm": net(bert(mean, False), ENCODER["words"], ENCODER),
    "distilbert": net(distilbert, ENCODER["words"], ENCODER),
    "distilbert_classifier": net(
        distilbert_classifier, ENCODER["words"], ENCODER | {"pre_classifier": True}, "distilbert"
    ),
    "bert_gelu_new": net(
        bert(lambda out, _: out.pooler_output, True, "gelu_new"), ENCODER["words"], ENCODER | {"act": "gelu_new"}, "bert"
    ),
    "embedding_lstm": net(lstm, 10_000),
}
