// Package canary makes worthless secrets of every kind that redaction knows,
// for tests. They are put together when they are asked for, so that no file
// has one.
package canary

import (
	"encoding/base64"
	"strings"
)

// Secret is what must not be found, and a text that has it.
type Secret struct {
	Rule  string
	Value string
	Text  string // with Value in it; "" means that Value can stand alone
}

const (
	mixed = "Zx9Kq2Lm8Rt4Vw7Yp3Nb6Hc1Jd5Fg0SaQeUiOlPzXcVbNmA1s2D3f4G5h6J7k8L9"
	upper = "Q7XK2MVP4JHT6WNB3RZD5YFC"
	hexed = "3f9a1c7e5b2d8064af13c95e7b20d846"
)

// Secrets lists one or more of every rule.
func Secrets() []Secret {
	list := []Secret{
		{"anthropic-key", "sk-ant-" + "api03-" + mixed[:40], ""},
		{"openai-key", "sk-" + "proj-" + mixed[:44], ""},
		{"openai-key", "sk-" + mixed[:48], ""},
		{"google-key", "AI" + "za" + mixed[:35], ""},
		{"google-key", "GOC" + "SPX-" + mixed[:28], ""},
		{"google-key", "ya" + "29." + mixed[:40], ""},
		{"aws-access-key", "AK" + "IA" + upper[:16], ""},
		{"aws-secret-key", mixed[3:43], "aws_secret_access_key = " + mixed[3:43]},
		{"github-token", "gh" + "p_" + mixed[:36], ""},
		{"github-token", "github" + "_pat_" + mixed[:50], ""},
		{"gitlab-token", "gl" + "pat-" + mixed[:20], ""},
		{"slack-token", "xo" + "xb-123456789012-" + mixed[:24], ""},
		{"slack-hook", "T0123ABCD/B0123ABCD/" + mixed[:24], "https://hooks." + "slack.com/services/T0123ABCD/B0123ABCD/" + mixed[:24]},
		{"stripe-key", "sk" + "_live_" + mixed[:24], ""},
		{"stripe-key", "wh" + "sec_" + mixed[:32], ""},
		{"npm-token", "np" + "m_" + mixed[:36], ""},
		{"pypi-token", "py" + "pi-AgEIcHlwaS5vcmc" + mixed[:60], ""},
		{"provider-token", "h" + "f_" + mixed[:34], ""},
		{"provider-token", "dop" + "_v1_" + hexed + hexed, ""},
		{"azure-key", mixed[:44] + "==", "AccountName=x;AccountKey=" + mixed[:44] + "==;Suffix=y"},
		{"age-key", "AGE-SECRET" + "-KEY-1" + upper + upper, ""},
		{"jwt", "ey" + "J" + mixed[:20] + ".ey" + "J" + mixed[5:45] + "." + mixed[2:45], ""},
		{"private-key", mixed[:60], "-----BEGIN RSA " + "PRIVATE KEY-----\n" + mixed[:60] + "\n" + mixed[4:40] + "\n-----END RSA " + "PRIVATE KEY-----"},
		{"private-key", mixed[:60], "-----BEGIN " + "PRIVATE KEY-----\n" + mixed[:60] + "\n" + mixed[4:40]},
		{"url-password", "hun" + "ter2-pw", "postgres://app:" + "hun" + "ter2-pw" + "@db.internal:5432/app?sslmode=disable"},
		{"url-password", "p@ss" + "#word", "redis://:p@ss" + "#word@cache:6379/0"},
		{"authorization", mixed[10:40], "curl -H 'Authorization: Bearer " + mixed[10:40] + "'"},
		{"authorization", base64.StdEncoding.EncodeToString([]byte("user:" + mixed[:12])), "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("user:"+mixed[:12]))},
		{"run-token", "mf-run-" + "01jd2n8k5q7xw3vz-" + hexed, ""},
		{"password", "correcthorse", `password: "correcthorse"`},
		{"assignment", mixed[7:31], "DEPLOY_TOKEN=" + mixed[7:31]},
		{"assignment", mixed[9:33], `"client_secret": "` + mixed[9:33] + `"`},
		{"email", "grace.hopper+nav" + "@navy-yard.mil", ""},
		{"phone", "+49 30 " + "901820 44", ""},
		{"phone", "415-555" + "-0132", ""},
		{"card", "4111 1111" + " 1111 1111", ""},
		{"card", "37828224" + "6310005", ""},
		{"social-security", "078-05" + "-1120", ""},
	}
	for i := range list {
		if list[i].Text == "" {
			list[i].Text = list[i].Value
		}
		list[i].Text = strings.Clone(list[i].Text)
	}
	return list
}
