"""Reward models as other trainers build and save them, written from the description of their layouts; none of kwise's code."""

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel


def llama_config(vocab_size, **options):
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **options,
    )


def scatter(module, seed=0):
    """Random values large enough for responses to differ clearly."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.2) if parameter.dim() > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


class CardModel(nn.Module):
    """The class on the Starling-RM-7B-alpha card: the decoder under two names, the LM head, ``v_head``; how the card reads it."""

    def __init__(self, config, pad_id=0):
        super().__init__()
        self.model = LlamaForCausalLM(config)
        self.transformer = self.model.model
        self.v_head = nn.Linear(config.hidden_size, 1, bias=False)
        self.pad_id = pad_id

    @torch.no_grad()
    def forward(self, input_ids, attention_mask):
        rewards = self.v_head(self.transformer(input_ids, attention_mask=attention_mask)[0]).squeeze(-1)
        scores = []
        for row, ids in zip(rewards, input_ids.tolist(), strict=True):
            end = ids.index(self.pad_id) if self.pad_id in ids else len(ids)
            scores.append(row[end - 1].item())
        return scores


class Starling34B(LlamaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.transformer = LlamaModel(config)
        self.v_head = nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()

    def last(self, ids):
        return self.v_head(self.transformer(ids)[0])[0, -1, 0].item()


class OpenRLHF(LlamaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        setattr(self, config.value_head_prefix, nn.Linear(config.hidden_size, 1, bias=False))
        self.post_init()

    def last(self, ids):
        reward = getattr(self, self.config.value_head_prefix)(self.model(ids)[0])[0, -1, 0]
        if self.config.normalize_reward:
            reward = (reward - self.config.mean) / self.config.std
        return reward.item()


class ValueHead(nn.Module):
    """TRL's: dropout, then a linear layer with a bias."""

    def __init__(self, size):
        super().__init__()
        self.dropout = nn.Dropout(0.1)
        self.summary = nn.Linear(size, 1)

    def forward(self, hidden):
        return self.summary(self.dropout(hidden))


class WithValueHead(nn.Module):
    """TRL's AutoModelForCausalLMWithValueHead, which LLaMA-Factory trains too."""

    def __init__(self, config):
        super().__init__()
        self.pretrained_model = LlamaForCausalLM(config)
        self.v_head = ValueHead(config.hidden_size)

    def last(self, ids):
        hidden = self.pretrained_model(ids, output_hidden_states=True).hidden_states[-1]
        return self.v_head(hidden)[0, -1, 0].item()

    def save_trl(self, folder):
        tensors = self.pretrained_model.state_dict()
        tensors |= {f"v_head.{name}": tensor for name, tensor in self.v_head.state_dict().items()}
        torch.save(tensors, folder / "pytorch_model.bin")

    def save_llama_factory(self, folder, safe):
        body = self.pretrained_model.state_dict()
        head = {f"v_head.{name}": tensor for name, tensor in self.v_head.state_dict().items()}
        if safe:
            save_file(body, folder / "model.safetensors")
            save_file(head, folder / "value_head.safetensors")
        else:
            torch.save(body, folder / "pytorch_model.bin")
            torch.save(head, folder / "value_head.bin")


class DeepSpeedChat(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.v_head = nn.Linear(config.hidden_size, 1, bias=False)
        self.rwtransformer = LlamaModel(config)

    def last(self, ids):
        return self.v_head(self.rwtransformer(ids)[0])[0, -1, 0].item()


class TrlxReward(nn.Module):
    """trlX's summarisation reward model: a decoder that keeps no LM head."""

    def __init__(self, vocab_size):
        super().__init__()
        config = GPTNeoXConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
        self.causal = [GPTNeoXForCausalLM(config)]  # a list, so that it is no part of the state
        self.transformer = self.causal[0].gpt_neox
        self.v_head = nn.Linear(32, 1, bias=False)

    def last(self, ids):
        return self.v_head(self.transformer(ids)[0])[0, -1, 0].item()
